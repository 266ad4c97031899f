"""Charts of cache growth up to ten million tokens: by kind of layer, and by engine policy."""

from collections.abc import Iterator, Sequence

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.report.charts import Point, Texts, line_chart
from l4spec.report.page import Figure, Section, Table
from l4spec.report.plan_page import marks_of
from l4spec.report.quantities import whole
from l4spec.units import gib
from planners.catalog import engine, shipped_names
from planners.counts.kv_cache import plan_cache
from planners.plan_types import KvCache, Plan

CONTEXTS = (1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000, 1_000_000, 2_000_000,
            4_000_000, 10_000_000)  # fmt: skip
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_ALIKE = 0.02
"""Engines whose caches differ by less, as those that round up to blocks do, share a line."""
_SHOWN = (1_000, 8_000, 128_000, 1_000_000, 10_000_000)
Series = list[tuple[str, tuple[Point, ...]]]


def growth_section(graph: LayerGraph, plan: Plan) -> Iterator[Section]:
    """Both charts, for one sequence; nothing if nothing is cached."""
    if plan.deployment.mode != "serve" or not plan.kv_cache.layers:
        return
    policy, dtype = plan.kv_cache.policy, plan.kv_cache.dtype
    caches = [_cache(graph, plan.deployment.engine, dtype, context) for context in CONTEXTS]
    figures = (
        _figure(plan, f"KV cache of one sequence by kind of layer, policy {policy}, {dtype}", _by_kind(caches)),
        _figure(plan, f"KV cache of one sequence by the policy of each engine, {dtype}", _by_engine(graph, dtype)),
    )
    yield Section("How the cache grows", figures)


def compared_growth(pairs: Sequence[tuple[LayerGraph, Plan]]) -> Iterator[Section]:
    """One chart with a line a model, each under the policy of its plan; nothing if none caches."""
    series: Series = []
    for graph, plan in pairs:
        if plan.deployment.mode == "serve" and plan.kv_cache.layers:
            caches = [_cache(graph, plan.deployment.engine, plan.kv_cache.dtype, context) for context in CONTEXTS]
            series.append((plan.model, tuple((float(cache.context), float(cache.bytes)) for cache in caches)))
    if series:
        title = f"KV cache of one sequence, policy {pairs[0][1].kv_cache.policy}, {pairs[0][1].kv_cache.dtype}"
        yield Section("How the caches grow", (_figure(pairs[0][1], title, series),))


def _cache(graph: LayerGraph, name: str, dtype: str, context: int) -> KvCache:
    return plan_cache(graph, engine(name), dtype=dtype, context=context, batch=1)


def _by_kind(caches: Sequence[KvCache]) -> Series:
    series: Series = []
    for index, layer in enumerate(caches[0].layers):
        law = f"{layer.law} {whole(layer.bound)}" if layer.bound else layer.law
        points = tuple(
            (float(cache.context), float(cache.layers[index].bytes * cache.layers[index].num_layers))
            for cache in caches
        )
        series.append((f"{layer.num_layers} × {layer.label} ({law})", points))
    total = tuple((float(cache.context), float(cache.bytes)) for cache in caches)
    return [*series, ("all, as the engine keeps it", total)]


def _by_engine(graph: LayerGraph, dtype: str) -> Series:
    """A line for each way of growing; engines that keep nearly the same bytes share that of the first."""
    series: list[tuple[list[str], tuple[Point, ...]]] = []
    for name in shipped_names("engines"):
        try:
            caches = [_cache(graph, name, dtype, context) for context in CONTEXTS]
        except UserError:
            continue
        points = tuple((float(cache.context), float(cache.bytes)) for cache in caches)
        same = next((names for names, others in series if _alike(points, others)), None)
        if same is None:
            series.append(([name], points))
        else:
            same.append(name)
    return [(", ".join(names), points) for names, points in series]


def _alike(some: tuple[Point, ...], others: tuple[Point, ...]) -> bool:
    return all(abs(a - b) <= _ALIKE * max(a, b) for (_, a), (_, b) in zip(some, others, strict=True))


def _figure(plan: Plan, title: str, series: Series) -> Figure:
    mark = marks_of(plan).work.mark
    chart = line_chart(series, "tokens of context", "bytes", Texts(_tokens, _bytes))
    rows = tuple(
        (name, *(mark + gib(int(dict(points)[float(context)])) for context in _SHOWN)) for name, points in series
    )
    table = Table(("", *(f"{whole(context)} tokens" for context in _SHOWN)), rows)
    return Figure(title, table, "chart.svg.j2", {"chart": chart})


def _tokens(power: int) -> str:
    return whole(10**power)


def _bytes(power: int) -> str:
    """A power of ten of bytes in decimal units: an axis of powers of ten has no round GiB."""
    step = max(0, min(power // 3, len(_UNITS) - 1))
    return f"{10 ** (power - 3 * step):,} {_UNITS[step]}"


__all__ = ["CONTEXTS", "growth_section"]
