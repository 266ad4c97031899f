"""Stage 7 for a run: every number of the plan that a run can confirm, beside what the run measured."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers.declaration import Work
from l4spec.layers.tally import MOST_FEW_ROWS
from l4spec.quantization.scheme import Quantization
from l4spec.report import quantities
from l4spec.report.expected_times import UNKNOWN, USUAL_ERROR, ExpectedTimes
from l4spec.report.page import Lines, Page, Section, Table
from planners.catalog import engine, quantization
from planners.executed import executed_rows
from planners.held import activation_bytes
from planners.kv_cache import plan_cache
from planners.latency.coverage import expected_coverage
from planners.params import count_params
from planners.plan_types import Frozen
from planners.weights import scheme_of, weigh

if TYPE_CHECKING:
    from l4spec.runtime.measure.run import Measurement, Sample

Law = Literal["exact", "bound", "timed", "shown"]
"""exact: equal to the digit. bound: measured <= planned <= 1.25 x measured. shown: nothing to hold it to.

timed: a prediction with its usual error, which a busy machine may exceed: told, and never a disagreement.
"""
SLACK_PERCENT = 25
"""How much more than was measured a planned activation peak may be."""
ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
Number = int | float
Unit = Literal["parameters", "flops", "bytes", "tokens", "experts", "seconds", "ratio"]


class MeasuredRow(Frozen):
    """One number, planned and measured, in base units. `agrees` is null where one is missing or nothing holds it."""

    section: str
    name: str
    unit: Unit
    planned: Number | None
    measured: Number | None
    difference: float | None
    law: Law
    agrees: bool | None


class ExpertLoad(Frozen):
    """How the tokens of a prefill spread over the experts of one layer."""

    layer: str
    choices_per_expert: tuple[int, ...]


class MeasureReport(Frozen):
    """Plan and measurement of one run, row by row. `finished` is false when the time limit cut it short.

    `time_note` says what times were predicted by and how wrong that usually is, or why they were not.
    """

    l4spec_measure: int = 1
    model: str
    device: str
    dtype: str
    quantization: str | None = None
    batch: int
    prefill: int
    decode: int
    tiles: int
    rows: tuple[MeasuredRow, ...]
    expert_load: tuple[ExpertLoad, ...]
    finished: bool
    agrees: bool
    time_note: str = ""


def hold(
    graph: LayerGraph,
    sample: "Sample",
    found: "Measurement",
    *,
    device: str,
    dtype: str,
    table: Quantization | None = None,
    logit_error: float | None = None,
    expected: ExpectedTimes = UNKNOWN,
) -> MeasureReport:
    """Hold a measurement against the plan of the same graph, sample, number format and quantization scheme.

    `logit_error` is the norm of what quantization changes in the logits, relative to that of the logits. Times are
    held against `expected`.
    """
    rows = (
        *_parameters(graph, found, table or quantization(dtype)),
        *([_row("output error", f"logits, of those in {dtype}", "ratio", None, logit_error, "shown")] if table else []),
        *_flops(graph, sample, found),
        *_caches(graph, sample, found, dtype),
        *_activations(graph, sample, found, dtype, is_told=device == "cpu" and table is None),
        *_experts(graph, sample, found),
        *_times(found, expected),
    )
    from l4spec.runtime.measure.run import STAGES

    return MeasureReport(
        model=graph.name,
        device=device,
        dtype=dtype,
        quantization=table.name if table else None,
        batch=sample.batch,
        prefill=sample.prefill,
        decode=sample.decode,
        tiles=sample.tiles,
        rows=rows,
        expert_load=tuple(ExpertLoad(layer=k, choices_per_expert=tuple(v)) for k, v in found.expert_load.items()),
        finished=len(found.done) == len(STAGES),
        time_note=expected.note,
        agrees=all(row.agrees is not False for row in rows),
    )


def cache_lengths(graph: LayerGraph, longest: int) -> tuple[int, ...]:
    """Lengths worth a row up to `longest`: one token, both sides of every bound, and the longest."""
    bounds = {entry.bound.size for node in graph.nodes for entry in node.declaration.cache if entry.bound.size}
    wanted = {1, longest} | {length for size in bounds for length in (size, size + 1)}
    return tuple(sorted(length for length in wanted if length <= longest))


def _row(
    section: str,
    name: str,
    unit: Unit,
    planned: Number | None,
    measured: Number | None,
    law: Law = "exact",
) -> MeasuredRow:
    known = planned is not None and measured is not None
    agrees = None
    if known and law == "exact":
        agrees = planned == measured
    elif planned is not None and measured is not None and law == "bound":
        agrees = measured <= planned and 100 * planned <= (100 + SLACK_PERCENT) * measured
    difference = (planned - measured) / measured if planned is not None and measured else None
    return MeasuredRow(
        section=section,
        name=name,
        unit=unit,
        planned=planned,
        measured=measured,
        difference=0.0 if known and planned == measured else difference,
        law=law,
        agrees=agrees,
    )


def _parameters(graph: LayerGraph, found: "Measurement", table: Quantization) -> Iterator[MeasuredRow]:
    measured = found.params_by_part if "weights" in found.done else None
    for part, planned in count_params(graph).by_part.items():
        if planned or (measured or {}).get(part):
            yield _row("parameters", part, "parameters", planned, None if measured is None else measured.get(part, 0))
    yield _row("weights", table.name, "bytes", weigh(graph, scheme_of(table)).bytes, found.weight_bytes)


def _flops(graph: LayerGraph, sample: "Sample", found: "Measurement") -> Iterator[MeasuredRow]:
    cached = all(n.declaration.cache for n in graph.nodes if n.scope == "text" and n.role == "attention")
    prefill = Work(sample.batch, sample.prefill, num_logits=1)
    yield from _flop_rows("prefill", graph, prefill, sample.tiles, found.prefill_flops, "prefill" in found.done)
    if sample.decode and cached:
        step = Work(sample.batch, 1, sample.prefill + sample.decode - 1, phase="decode", num_logits=1)
        yield from _flop_rows("decode step", graph, step, 0, found.decode_flops, "decode" in found.done)
    if sample.training:
        train = Work(sample.batch, sample.prefill, phase="train")
        is_done = "training" in found.done
        yield from _flop_rows("training step", graph, train, sample.tiles, found.training_flops, is_done)


def _flop_rows(
    section: str, graph: LayerGraph, work: Work, tiles: int, counted: Mapping[str, int], is_done: bool
) -> Iterator[MeasuredRow]:
    planned: dict[str, int] = defaultdict(int)
    measured: dict[str, int] = defaultdict(int)
    for row in executed_rows(graph, work, tiles):
        planned[_layer_name(row.group)] += row.flops
    for group in graph.groups:
        measured[_layer_name(group)] += sum(counted.get(node.id, 0) for node in group.nodes)
    strayed = sum(counted.values()) - sum(measured.values())
    if strayed:
        measured["outside any layer"] = strayed
    title = f"executed FLOPs, {section}"
    for name in dict.fromkeys((*planned, *measured)):
        if planned[name] or measured[name]:
            yield _row(title, name, "flops", planned[name], measured[name] if is_done else None)


def _layer_name(group: LayerGroup) -> str:
    node = group.first
    name = node.role if node.label == node.role else f"{node.role} ({node.label})"
    return f"vision {name}" if node.scope == "vision" else name


def _caches(graph: LayerGraph, sample: "Sample", found: "Measurement", dtype: str) -> Iterator[MeasuredRow]:
    for length in sample.cache_lengths:
        planned = plan_cache(graph, engine("ideal"), dtype=dtype, context=length, batch=sample.batch).bytes
        if planned:
            name = f"{quantities.whole(length)} tokens" if length > 1 else "1 token"
            yield _row("KV cache", name, "bytes", planned, found.cache_bytes.get(length))


def _activations(
    graph: LayerGraph, sample: "Sample", found: "Measurement", dtype: str, *, is_told: bool
) -> Iterator[MeasuredRow]:
    work = Work(sample.batch, sample.prefill, num_logits=1)
    planned = activation_bytes(
        graph, work, num_tiles=sample.tiles, item_bytes=ITEM_BYTES[dtype], expert_load=found.expert_load
    )
    # other devices run other kernels, with workspaces of their own; packed weights are unpacked on the way; few rows go
    # through products in halves
    law: Law = "bound" if is_told and sample.batch * sample.prefill > MOST_FEW_ROWS else "shown"
    yield _row("activations", "peak of prefill", "bytes", planned, found.activation_bytes, law)


def _experts(graph: LayerGraph, sample: "Sample", found: "Measurement") -> Iterator[MeasuredRow]:
    tokens = {"text": sample.batch * sample.prefill}
    if graph.model.vision is not None and sample.tiles:
        tokens["vision"] = sample.tiles * graph.model.vision.patch_embedding.num_tokens
    for group in graph.groups:
        spec, num_tokens = group.first.spec, tokens.get(group.first.scope, 0)
        top_k, num_experts = getattr(spec, "num_experts_per_token", 0), getattr(spec, "num_experts", 0)
        if not num_experts or not num_tokens:
            continue
        name, loads = _layer_name(group), [found.expert_load.get(node.id) for node in group.nodes]
        known = [load for load in loads if load is not None and "prefill" in found.done]
        chosen = sum(map(sum, known)) if known else None
        yield _row("experts", f"{name}: choices", "tokens", group.count * num_tokens * top_k, chosen)
        reached = sum(1 for load in known for count in load if count) / group.count if known else None
        expected = round(expected_coverage(num_experts, top_k, num_tokens), 2)
        yield _row("experts", f"{name}: reached a layer, if uniform", "experts", expected, reached, "shown")
        busiest = max(map(max, known)) if known else None
        evenly = -(-num_tokens * top_k // num_experts)
        yield _row("experts", f"{name}: tokens of the busiest, if even", "tokens", evenly, busiest, "shown")


def _times(found: "Measurement", expected: ExpectedTimes) -> Iterator[MeasuredRow]:
    law: Law = "shown" if expected.prefill is None else "timed"
    yield _row("time", "prefill", "seconds", expected.prefill, found.prefill_seconds, law)
    if found.decode_seconds is not None:
        yield _row("time", "decode step", "seconds", expected.decode, found.decode_seconds, law)


def measure_page(report: MeasureReport) -> Page:
    """The verdict first, then a table for each section."""
    told = (_verdict(report), _setting(report), *([report.time_note] if report.time_note else []))
    sections = [Section("", (Lines(told),))]
    by_section: dict[str, list[MeasuredRow]] = defaultdict(list)
    for row in report.rows:
        by_section[row.section].append(row)
    headers = ("", "planned", "measured", "difference", "agrees")
    for title, rows in by_section.items():
        table = Table(headers, tuple(_cells(row) for row in rows), "lrrrl")
        sections.append(Section(title[0].upper() + title[1:], (table,)))
    return tuple(sections)


def _verdict(report: MeasureReport) -> str:
    held = [row for row in report.rows if row.agrees is not None]
    failed = sum(not row.agrees for row in held)
    text = f"{report.model}: {failed} of {len(held)} rows do NOT agree" if failed else ""
    text = text or f"{report.model}: plan and run agree in all {len(held)} rows"
    return text if report.finished else f"{text}; the time limit came before the rest was measured"


def _setting(report: MeasureReport) -> str:
    tiles = f", {report.tiles} image tiles" if report.tiles else ""
    weights = report.quantization or report.dtype
    return (
        f"{report.device}, {weights}, batch {report.batch}: prefill of {quantities.whole(report.prefill)} tokens"
        f"{tiles}, then {report.decode} decode steps; weights are random"
    )


def _cells(row: MeasuredRow) -> tuple[str, ...]:
    change = "-" if row.difference is None or row.law == "shown" else quantities.difference(row.difference)
    verdict = {None: "-", True: "yes", False: "NO"}[row.agrees]
    if row.law == "timed" and row.difference is not None:
        verdict = "as usual" if abs(row.difference) <= USUAL_ERROR else "unusual"
    return row.name, _shown(row, row.planned), _shown(row, row.measured), change, verdict


def _shown(row: MeasuredRow, value: Number | None) -> str:
    if value is None:
        return "-"
    if row.unit == "seconds":
        return f"{value * 1000:,.3f} ms"
    if row.unit == "ratio":
        return f"{100 * value:,.3f} %"
    text = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
    return f"{text} B" if row.unit == "bytes" else text
