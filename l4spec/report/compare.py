"""Models side by side, planned the same way."""

from collections.abc import Callable, Iterable

from l4spec.graph.layer_graph import LayerGraph
from l4spec.report.about import compared_sections
from l4spec.report.page import Lines, Page, Section, Table
from l4spec.report.plan_page import estimate_notes, marks_of
from l4spec.report.prices import output_price, price_of, run_price, times_of
from l4spec.report.quantities import Figures, Marked, usd, whole
from l4spec.spec.about import About
from l4spec.units import gib
from planners.frozen import Frozen
from planners.plan_types import Plan
from planners.search.layouts import MAX_BATCH


class ModelShape(Frozen):
    """Sizes of a model in comparisons. Heads are those of the first attention, experts of the widest mixture."""

    num_layers: int
    hidden_size: int
    num_heads: int | None
    num_kv_heads: int | None
    num_experts: int
    num_experts_per_token: int
    vocab_size: int
    max_seq_len: int
    vision: bool


class Compared(Frozen):
    """One model: its sizes, its plan, and published facts about it."""

    shape: ModelShape
    plan: Plan
    about: About | None = None


class Comparison(Frozen):
    """All models in the order given."""

    l4spec_compare: int = 1
    models: tuple[Compared, ...]


def compare(pairs: Iterable[tuple[LayerGraph, Plan]]) -> Comparison:
    """Put graphs and their plans side by side."""
    return Comparison(
        models=tuple(Compared(shape=shape_of(graph), plan=plan, about=graph.model.spec.about) for graph, plan in pairs)
    )


def shape_of(graph: LayerGraph) -> ModelShape:
    """The sizes that people compare models by."""
    text = graph.model.text
    declared = [group.declaration for group in graph.groups if group.first.scope == "text"]
    attention = next((layer for layer in declared if layer.units_of("heads") is not None), None)
    mixtures = [layer.routed for layer in declared if layer.routed is not None]
    widest = max(mixtures, key=lambda routed: routed.num_experts, default=None)
    return ModelShape(
        num_layers=graph.num_layers,
        hidden_size=text.stack.width.hidden_size,
        num_heads=attention.units_of("heads") if attention else None,
        num_kv_heads=attention.units_of("kv_heads") if attention else None,
        num_experts=widest.num_experts if widest else 0,
        num_experts_per_token=widest.num_per_token if widest else 0,
        vocab_size=text.embedding.vocab_size,
        max_seq_len=text.stack.width.max_seq_len,
        vision=graph.model.vision is not None,
    )


Row = tuple[str, Callable[[ModelShape, Plan, Marked], str]]
_SHAPE: tuple[Row, ...] = (
    ("layers", lambda shape, plan, n: n.sizes.whole(shape.num_layers)),
    ("hidden size", lambda shape, plan, n: n.sizes.whole(shape.hidden_size)),
    ("heads / KV heads", lambda shape, plan, n: _pair(shape.num_heads, shape.num_kv_heads, n.sizes)),
    (
        "experts (active per token)",
        lambda shape, plan, n: _pair(shape.num_experts, shape.num_experts_per_token, n.sizes),
    ),
    ("vocabulary", lambda shape, plan, n: whole(shape.vocab_size)),
    ("longest sequence", lambda shape, plan, n: whole(shape.max_seq_len)),
    ("vision", lambda shape, plan, n: "yes" if shape.vision else "no"),
)
_COSTS: tuple[Row, ...] = (
    ("parameters", lambda shape, plan, n: n.sizes.count(plan.params.total)),
    ("active per token", lambda shape, plan, n: n.sizes.count(plan.params.active)),
    ("active without embedding", lambda shape, plan, n: n.sizes.count(plan.params.active_without_embedding)),
    ("weights", lambda shape, plan, n: n.sizes.gib(plan.weights.bytes)),
)
_A_TOKEN: Row = (
    "FLOPs per token without attention",
    lambda shape, plan, n: n.sizes.flops(plan.flops.forward_per_token),
)
_SERVING_COSTS: tuple[Row, ...] = (
    ("KV cache", lambda shape, plan, n: n.work.gib(plan.kv_cache.bytes)),
    (
        "KV cache per token, every layer",
        lambda shape, plan, n: n.work.exact_bytes(plan.kv_cache.bytes_per_token_unbounded),
    ),
    (
        "KV cache per token, unbounded layers",
        lambda shape, plan, n: n.work.exact_bytes(plan.kv_cache.bytes_per_token_global),
    ),
    _A_TOKEN,
    ("FLOPs of the prefill", lambda shape, plan, n: n.work.flops(plan.flops.prefill)),
    ("FLOPs of a decode step", lambda shape, plan, n: n.work.flops(plan.flops.decode)),
)
_TRAINING_COSTS: tuple[Row, ...] = (
    _A_TOKEN,
    ("FLOPs of a training step", lambda shape, plan, n: n.work.flops(plan.flops.train_step)),
    ("ZeRO stage", lambda shape, plan, n: str(plan.deployment.zero_stage)),
    ("checkpointing", lambda shape, plan, n: plan.deployment.activation_checkpointing or "-"),
    ("micro-batch", lambda shape, plan, n: whole(plan.deployment.micro_batch or 1)),
)
_FIT: tuple[Row, ...] = (("fullest device", lambda shape, plan, n: n.work.gib(plan.memory_per_device.total_bytes)),)
_ON_GPUS: tuple[Row, ...] = (
    ("of", lambda shape, plan, n: gib(plan.memory_per_device.capacity_bytes or 0)),
    ("layout", lambda shape, plan, n: str(plan.layout)),
    ("fits", lambda shape, plan, n: "yes" if plan.fits else "no"),
    ("longest context", lambda shape, plan, n: n.work.whole(plan.max_context or 0)),
)
_SERVED: tuple[Row, ...] = (
    ("largest batch", lambda shape, plan, n: _most(plan.max_batch or 0, n)),
    ("TTFT", lambda shape, plan, n: _time(times_of(plan).ttft_seconds, n)),
    ("TPOT", lambda shape, plan, n: _time(times_of(plan).time_per_output_token_seconds, n)),
    ("tokens/s per GPU", lambda shape, plan, n: _number(times_of(plan).tokens_per_second_per_gpu, n)),
    ("$ per million output tokens", lambda shape, plan, n: usd(output_price(plan))),
)
_TRAINED: tuple[Row, ...] = (
    ("step", lambda shape, plan, n: _time(times_of(plan).step_time_seconds, n)),
    ("MFU", lambda shape, plan, n: _percent(times_of(plan).mfu)),
    ("training tokens/s", lambda shape, plan, n: _number(times_of(plan).train_tokens_per_second, n)),
    ("GPU-hours", lambda shape, plan, n: _number(times_of(plan).gpu_hours, n)),
    ("$ of the run", lambda shape, plan, n: usd(run_price(plan))),
)


def _most(batch: int, n: Marked) -> str:
    """The largest batch; the cap of the search for it is no result."""
    return f"{whole(MAX_BATCH)} and more" if batch >= MAX_BATCH else n.work.whole(batch)


def _time(value: float | None, n: Marked) -> str:
    return "-" if value is None else n.work.seconds(value)


def _number(value: float | None, n: Marked) -> str:
    return "-" if value is None else n.work.whole(round(value)) if value >= 100 else f"{n.work.mark}{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _pair(first: int | None, second: int | None, figures: Figures) -> str:
    return "-" if not first else f"{figures.whole(first)} / {second or '-'}"


def compare_page(comparison: Comparison) -> Page:
    """A column per model, and the assumptions."""
    models = comparison.models
    limited = models[0].plan.cluster is not None
    serving = models[0].plan.deployment.mode == "serve"
    costs, timed = (_SERVING_COSTS, _SERVED) if serving else (_TRAINING_COSTS, _TRAINED)
    columns = (*_SHAPE, *_COSTS, *costs, *_FIT, *((*_ON_GPUS, *timed) if limited else ()))
    rows = tuple((label, *(_cell(model, cell) for model in models)) for label, cell in columns)
    headers = ("", *(model.plan.model for model in models))
    sections = [
        Section("", (Table(headers, rows),)),
        Section("", (Lines((_assumed(comparison), *_priced(comparison))),)),
    ]
    sections += compared_sections([(model.plan.model, model.about) for model in models])
    plans = [model.plan for model in models]
    notes = tuple(f"{p.model}: {note}" for p in plans for note in estimate_notes(p.estimated, p.estimates))
    if notes:
        sections.append(Section("", (Lines(notes),)))
    return tuple(sections)


def _cell(model: Compared, cell: Callable[[ModelShape, Plan, Marked], str]) -> str:
    return cell(model.shape, model.plan, marks_of(model.plan))


def _priced(comparison: Comparison) -> tuple[str, ...]:
    """Notes on the source of prices and on times that are extrapolations."""
    plans = [model.plan for model in comparison.models]
    price = price_of(plans[0])
    lines = [] if price is None else [f"Price of a GPU: ${price[0]:.2f} an hour {price[1]}."]
    if any(times_of(plan).extrapolated for plan in plans):
        lines.append("Some times are extrapolations: l4spec plan tells which and why.")
    return tuple(lines)


def _assumed(comparison: Comparison) -> str:
    asked = comparison.models[0].plan.deployment
    contexts = sorted({model.plan.deployment.context for model in comparison.models})
    tokens = " or ".join(whole(context) for context in contexts)
    origin = "the default" if asked.context_origin == "default" else "as asked"
    cluster = comparison.models[0].plan.cluster
    where = f" on {cluster.text}" if cluster else ""
    formats = dict.fromkeys(model.plan.deployment.quantization for model in comparison.models)
    weights = f"{asked.quantization} weights" if len(formats) == 1 else "weights as published"
    batch = f"batch {whole(asked.batch)}{' (chosen)' if asked.batch_origin == 'chosen' else ''}"
    served = f"KV cache in {asked.kv_dtype}, cache policy {asked.engine}"
    rest = served if asked.mode == "serve" else f"{asked.optimizer}, matmuls in {asked.precision}"
    return f"Planned{where} with {weights}, {tokens} tokens ({origin}), {batch}, {rest}."
