"""Comparison of a plan with a run: every number of the plan that a run can confirm, beside the measured one."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers import KINDS
from l4spec.layers.common.ledger import MOST_FEW_ROWS
from l4spec.layers.declaration import Work
from l4spec.quantization.scheme import Quantization
from l4spec.sharding.layout import Layout
from l4spec.units import ceil_div
from l4spec.verification.expected_times import UNKNOWN, ExpectedTimes
from planners.catalog import engine, quantization
from planners.counts.kv_cache import plan_cache
from planners.counts.params import count_params
from planners.counts.weights import scheme_of, weigh
from planners.frozen import Frozen
from planners.module.activation_ledger import activation_bytes
from planners.module.executed import executed_rows
from planners.timing.expert_coverage import expected_coverage

if TYPE_CHECKING:
    from l4spec.runtime.measure.run import RunMeasurement, RunShape

Law = Literal["exact", "bound", "timed", "shown"]
"""exact: equal to the digit. bound: measured <= planned <= 1.25 x measured. shown: nothing to hold it to.

timed: a prediction with its usual error, which a busy machine may exceed: shown, and never a disagreement.
"""
SLACK_PERCENT = 25
"""Largest excess of a planned activation peak over the measured one, in percent."""
ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
Number = int | float
Unit = Literal["parameters", "calls", "flops", "bytes", "tokens", "experts", "seconds", "ratio"]


class MeasuredRow(Frozen):
    """One number, planned and measured, in base units. `agrees` is null if one is missing or nothing holds it.

    `ranks` are those that have these two numbers; none where the number is of all together.
    """

    section: str
    name: str
    unit: Unit
    planned: Number | None
    measured: Number | None
    difference: float | None
    law: Law
    agrees: bool | None
    ranks: tuple[int, ...] = ()


class ExpertLoad(Frozen):
    """Distribution of a prefill's tokens over the experts of one layer."""

    layer: str
    choices_per_expert: tuple[int, ...]


class MeasureReport(Frozen):
    """Plan and measurement of one run, row by row. `finished` is false when the time limit cut it short.

    `time_note` has the source of predicted times and its usual error, or the reason why there are none. With a `layout`
    rows are of its ranks, and `left_out` names the measurements without a plan.
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
    layout: Layout | None = None
    left_out: tuple[str, ...] = ()


def compare_run(
    graph: LayerGraph,
    sample: "RunShape",
    measurement: "RunMeasurement",
    *,
    device: str,
    dtype: str,
    table: Quantization | None = None,
    logit_error: float | None = None,
    expected: ExpectedTimes = UNKNOWN,
) -> MeasureReport:
    """Compare a measurement with the plan of the same graph, sample, number format and quantization scheme.

    `logit_error` is the norm of the change of the logits by quantization, relative to that of the logits. Times are
    compared with `expected`.
    """
    rows = (
        *_parameters(graph, measurement, table or quantization(dtype)),
        *(
            [row_of("output error", f"logits, of those in {dtype}", "ratio", None, logit_error, "shown")]
            if table
            else []
        ),
        *_flops(graph, sample, measurement),
        *_caches(graph, sample, measurement, dtype),
        *_activations(graph, sample, measurement, dtype, is_plain=device == "cpu" and table is None),
        *expert_rows(graph, sample, measurement.expert_load, is_known="prefill" in measurement.done),
        *_times(measurement, expected),
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
        expert_load=tuple(ExpertLoad(layer=k, choices_per_expert=tuple(v)) for k, v in measurement.expert_load.items()),
        finished=len(measurement.done) == len(STAGES),
        time_note=expected.note,
        agrees=all(row.agrees is not False for row in rows),
    )


def cache_lengths(graph: LayerGraph, longest: int) -> tuple[int, ...]:
    """Lengths worth a row up to `longest`: one token, both sides of every bound, and the longest."""
    bounds = {entry.bound.size for node in graph.nodes for entry in node.declaration.cache if entry.bound.size}
    lengths = {1, longest} | {length for size in bounds for length in (size, size + 1)}
    return tuple(sorted(length for length in lengths if length <= longest))


def row_of(
    section: str,
    name: str,
    unit: Unit,
    planned: Number | None,
    measured: Number | None,
    law: Law = "exact",
    *,
    ranks: tuple[int, ...] = (),
) -> MeasuredRow:
    """The row, judged by its law."""
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
        ranks=ranks,
    )


def _parameters(graph: LayerGraph, measurement: "RunMeasurement", table: Quantization) -> Iterator[MeasuredRow]:
    measured = measurement.params_by_part if "weights" in measurement.done else None
    for part, planned in count_params(graph).by_part.items():
        if planned or (measured or {}).get(part):
            yield row_of("parameters", part, "parameters", planned, None if measured is None else measured.get(part, 0))
    yield row_of("weights", table.name, "bytes", weigh(graph, scheme_of(table)).bytes, measurement.weight_bytes)


def _flops(graph: LayerGraph, sample: "RunShape", measurement: "RunMeasurement") -> Iterator[MeasuredRow]:
    cached = all(n.declaration.cache for n in graph.nodes if n.scope == "text" and n.role == "attention")
    prefill = Work(sample.batch, sample.prefill, num_logits=1)
    yield from _flop_rows(
        "prefill", graph, prefill, sample.tiles, measurement.prefill_flops, "prefill" in measurement.done
    )
    if sample.decode and cached:
        step = Work(sample.batch, 1, sample.prefill + sample.decode - 1, phase="decode", num_logits=1)
        yield from _flop_rows("decode step", graph, step, 0, measurement.decode_flops, "decode" in measurement.done)
    if sample.training:
        train = Work(sample.batch, sample.prefill, phase="train")
        is_done = "training" in measurement.done
        yield from _flop_rows("training step", graph, train, sample.tiles, measurement.training_flops, is_done)


def _flop_rows(
    section: str, graph: LayerGraph, work: Work, tiles: int, counted: Mapping[str, int], is_done: bool
) -> Iterator[MeasuredRow]:
    planned: dict[str, int] = defaultdict(int)
    measured: dict[str, int] = defaultdict(int)
    for row in executed_rows(graph, work, tiles):
        planned[layer_name(row.group)] += row.flops
    for group in graph.groups:
        measured[layer_name(group)] += sum(counted.get(node.id, 0) for node in group.nodes)
    strayed = sum(counted.values()) - sum(measured.values())
    if strayed:
        measured["outside any layer"] = strayed
    title = f"executed FLOPs, {section}"
    for name in dict.fromkeys((*planned, *measured)):
        if planned[name] or measured[name]:
            yield row_of(title, name, "flops", planned[name], measured[name] if is_done else None)


def layer_name(group: LayerGroup) -> str:
    """Name of a group of layers in reports."""
    node = group.first
    name = node.role if node.label == node.role else f"{node.role} ({node.label})"
    return f"vision {name}" if node.scope == "vision" else name


def _caches(graph: LayerGraph, sample: "RunShape", measurement: "RunMeasurement", dtype: str) -> Iterator[MeasuredRow]:
    for length in sample.cache_lengths:
        planned = plan_cache(graph, engine("ideal"), dtype=dtype, context=length, batch=sample.batch).bytes
        if planned:
            yield row_of("KV cache", length_name(length), "bytes", planned, measurement.cache_bytes.get(length))


def length_name(length: int) -> str:
    """Name of a cache of this many tokens in reports."""
    return f"{length:,} tokens" if length > 1 else "1 token"


def _activations(
    graph: LayerGraph, sample: "RunShape", measurement: "RunMeasurement", dtype: str, *, is_plain: bool
) -> Iterator[MeasuredRow]:
    work = Work(sample.batch, sample.prefill, num_logits=1)
    planned = activation_bytes(
        graph, work, num_tiles=sample.tiles, item_bytes=ITEM_BYTES[dtype], expert_load=measurement.expert_load
    )
    # other devices run other kernels, with workspaces of their own; packed weights are unpacked on the way; few rows go
    # through products in halves; some kinds declare an engine's fused kernels alone
    is_predicted = is_plain and all(KINDS[group.first.kind].is_peak_predicted for group in graph.groups)
    law: Law = "bound" if is_predicted and sample.batch * sample.prefill > MOST_FEW_ROWS else "shown"
    yield row_of("activations", "peak of prefill", "bytes", planned, measurement.activation_bytes, law)


def expert_rows(
    graph: LayerGraph, sample: "RunShape", expert_load: Mapping[str, list[int]], *, is_known: bool
) -> Iterator[MeasuredRow]:
    """Rows on the distribution of a prefill's tokens over experts; measured values only if `is_known`."""
    tokens = {"text": sample.batch * sample.prefill}
    if graph.model.vision is not None and sample.tiles:
        tokens["vision"] = sample.tiles * graph.model.vision.patch_embedding.num_tokens
    for group in graph.groups:
        routed, num_tokens = group.declaration.routed, tokens.get(group.first.scope, 0)
        if routed is None or not num_tokens:
            continue
        top_k, num_experts = routed.num_per_token, routed.num_experts
        name, loads = layer_name(group), [expert_load.get(node.id) for node in group.nodes]
        known = [load for load in loads if load is not None and is_known]
        chosen = sum(map(sum, known)) if known else None
        yield row_of("experts", f"{name}: choices", "tokens", group.count * num_tokens * top_k, chosen)
        reached = sum(1 for load in known for count in load if count) / group.count if known else None
        expected = round(expected_coverage(num_experts, top_k, num_tokens), 2)
        yield row_of("experts", f"{name}: reached, as if uniform", "experts", expected, reached, "shown")
        busiest = max(map(max, known)) if known else None
        evenly = ceil_div(num_tokens * top_k, num_experts)
        yield row_of("experts", f"{name}: tokens of the busiest, as if balanced", "tokens", evenly, busiest, "shown")


def _times(measurement: "RunMeasurement", expected: ExpectedTimes) -> Iterator[MeasuredRow]:
    law: Law = "shown" if expected.prefill is None else "timed"
    yield row_of("time", "prefill", "seconds", expected.prefill, measurement.prefill_seconds, law)
    if measurement.decode_seconds is not None:
        yield row_of("time", "decode step", "seconds", expected.decode, measurement.decode_seconds, law)
