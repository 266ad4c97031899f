"""Comparison of a plan with the ranks of a layout: planned memory, FLOPs and traffic of each, beside the measured.

Ranks with the same two numbers share a row. The load of a mixture's experts depends on the router, so that each rank's
FLOPs and traffic for them are planned from the measured number of choices of each expert; the total is planned without
measurement.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.runtime.measure.job import MeasureJob
from l4spec.runtime.measure.results import RANK_STAGES, Ran, RankMeasurement
from l4spec.sharding.layout import Layout, MeshCoordinate, place_of
from l4spec.sharding.rules import cuts_of
from l4spec.sharding.sequence import longest_run, runs_of
from l4spec.verification.measure import (
    ITEM_BYTES,
    ExpertLoad,
    Law,
    MeasuredRow,
    MeasureReport,
    Number,
    Unit,
    expert_rows,
    layer_name,
    length_name,
    row_of,
)
from planners.catalog import quantization
from planners.counts.weights import Scheme, scheme_of
from planners.module.runtime_collectives import Handed, Key, Pass, forward_on_rank, training_on_rank
from planners.module.runtime_rank import Arrived, cache_on_rank, executed_on_rank, stage_on_rank, weights_on_rank

Values = Sequence[tuple[Number | None, Number | None]]
"""Planned and measured, rank by rank."""


def compare_ranks(job: MeasureJob, measured: Sequence[RankMeasurement]) -> MeasureReport:
    """Compare the measurements of a job's ranks with the plan of its layout."""
    run = _Run(job, measured)
    passes = [each for each in (run.prefill, run.decode, run.training) if each is not None]
    load = _load_of_all(run)
    rows = (
        *_weights(run),
        *_caches(run),
        *(row for each in passes for row in _flops(run, each)),
        *(row for each in passes for row in _traffic(run, each)),
        *run.rows("activations", "peak of prefill", "bytes", [(None, f.activation_bytes) for f in measured], "shown"),
        *expert_rows(job.graph, _sample(job), load, is_known=bool(load)),
        *_times(run),
    )
    return MeasureReport(
        model=job.graph.name,
        device=job.device,
        dtype=job.number_format,
        batch=job.batch,
        prefill=job.prefill,
        decode=job.decode if job.decodes else 0,
        tiles=0,
        rows=rows,
        expert_load=tuple(ExpertLoad(layer=k, choices_per_expert=tuple(v)) for k, v in load.items()),
        finished=all(set(each.done) == set(RANK_STAGES) for each in measured),
        agrees=all(row.agrees is not False for row in rows),
        layout=job.layout,
        left_out=tuple(_left_out(run)),
    )


@dataclass(frozen=True, slots=True)
class _Pass:
    """A pass by its name: each rank's work, the ranks' measurements (None: not measured), and planned traffic."""

    name: str
    work: tuple[Work, ...]
    ran: tuple[Ran | None, ...]
    plan: Callable[[int, Pass], dict[Key, Handed]]


@dataclass(frozen=True, slots=True)
class _Run:
    job: MeasureJob
    measured: Sequence[RankMeasurement]

    @property
    def graph(self) -> LayerGraph:
        return self.job.graph

    @property
    def layout(self) -> Layout:
        return self.job.layout

    @property
    def ranks(self) -> range:
        return range(self.layout.num_devices)

    @property
    def item(self) -> int:
        return ITEM_BYTES[self.job.number_format]

    @property
    def scheme(self) -> Scheme:
        return scheme_of(quantization(self.job.number_format))

    def place(self, rank: int) -> MeshCoordinate:
        return place_of(self.layout, rank)

    def own_tokens(self, rank: int) -> range:
        """The tokens of each prompt that a rank runs."""
        if self.layout.cp == 1:
            return range(self.job.prefill)
        return runs_of(self.graph, self.job.prefill, self.layout.cp)[self.place(rank).cp]

    @property
    def prefill(self) -> _Pass:
        work = tuple(Work(self.job.sequences, len(self.own_tokens(rank)), num_logits=1) for rank in self.ranks)

        def plan(rank: int, each: Pass) -> dict[Key, Handed]:
            return forward_on_rank(self.graph, self.layout, rank, each)

        return _Pass("prefill", work, tuple(each.prefill for each in self.measured), plan)

    @property
    def decode(self) -> _Pass | None:
        if not self.job.decodes:
            return None
        before = self.job.prefill + self.job.decode - 1
        step = Work(self.job.sequences, 1, before, phase="decode", num_logits=1)

        def plan(rank: int, each: Pass) -> dict[Key, Handed]:
            return forward_on_rank(self.graph, self.layout, rank, each, chooses=True)

        return _Pass("decode step", (step,) * len(self.ranks), tuple(each.decode for each in self.measured), plan)

    @property
    def training(self) -> _Pass | None:
        if not self.job.train:
            return None
        step = Work(self.job.sequences, self.job.prefill, phase="train")

        def plan(rank: int, each: Pass) -> dict[Key, Handed]:
            stage = stage_on_rank(self.graph, self.scheme, self.layout, self.place(rank))
            parts = self.job.sequences if self.layout.pp > 1 else 1
            return training_on_rank(self.graph, self.layout, rank, stage, each, parts)

        return _Pass("training step", (step,) * len(self.ranks), tuple(each.training for each in self.measured), plan)

    def rows(self, section: str, name: str, unit: Unit, values: Values, law: Law = "exact") -> Iterator[MeasuredRow]:
        """One row for all ranks with the same two numbers; none where there is nothing on both sides."""
        alike: dict[tuple[Any, Any], list[int]] = defaultdict(list)
        for rank, pair in enumerate(values):
            alike[pair].append(rank)
        for (planned, measured), ranks in alike.items():
            if planned or measured:
                yield row_of(section, name, unit, planned, measured, law, ranks=tuple(ranks))


def _weights(run: _Run) -> Iterator[MeasuredRow]:
    planned_weights = [weights_on_rank(run.graph, run.scheme, run.layout, rank) for rank in run.ranks]
    parts = dict.fromkeys(part for each in planned_weights for part in each.params_by_part)
    parts |= dict.fromkeys(part for each in run.measured for part in each.params_by_part or {})
    for part in parts:
        measured = [None if f.params_by_part is None else f.params_by_part.get(part, 0) for f in run.measured]
        planned = [each.params_by_part.get(part, 0) for each in planned_weights]
        yield from run.rows("parameters", part, "parameters", list(zip(planned, measured, strict=True)))
    sizes = [(each.weight_bytes, f.weight_bytes) for each, f in zip(planned_weights, run.measured, strict=True)]
    yield from run.rows("weights", run.job.number_format, "bytes", sizes)
    for stage in range(run.layout.pp):
        ranks = [rank for rank in run.ranks if run.place(rank).pp == stage]
        planned_stage = stage_on_rank(run.graph, run.scheme, run.layout, run.place(ranks[0]))
        known = [size for size in (run.measured[rank].weight_bytes for rank in ranks) if size is not None]
        of = f" of stage {stage}" if run.layout.pp > 1 else ""
        fullest = max(known) if known else None
        yield row_of("weights", f"the fullest rank{of}, by `plan`", "bytes", planned_stage.weights.total_bytes, fullest)


def _caches(run: _Run) -> Iterator[MeasuredRow]:
    stages = [stage_on_rank(run.graph, run.scheme, run.layout, run.place(rank)) for rank in run.ranks]
    for length in run.job.lengths:
        tokens = longest_run(run.graph, length, run.layout.cp) if run.layout.cp > 1 else length
        planned = [cache_on_rank(run.graph, stage, run.layout, run.job.sequences, tokens, run.item) for stage in stages]
        measured = [None if each.cache_bytes is None else each.cache_bytes.get(length) for each in run.measured]
        yield from run.rows("KV cache", length_name(length), "bytes", list(zip(planned, measured, strict=True)))


def _arrived(run: _Run, ran: Sequence[Ran | None]) -> list[Arrived | None]:
    """For each rank, by mixture, how many rows the ranks along ep have sent to the experts that it holds."""
    rank_at = {run.place(rank): rank for rank in run.ranks}
    return [
        _arrived_on(run, ran, [rank_at[run.place(rank)._replace(ep=ep)] for ep in range(run.layout.ep)], rank)
        for rank in run.ranks
    ]


def _arrived_on(run: _Run, ran: Sequence[Ran | None], peers: list[int], rank: int) -> Arrived | None:
    loads = [each.load for each in (ran[peer] for peer in peers) if each is not None]
    if len(loads) < len(peers):
        return None
    rows = {}
    for name in loads[0]:
        own_experts = cuts_of(run.graph.by_id[name], run.layout)["experts"][run.place(rank).ep]
        rows[name] = sum(sum(load[name][own_experts.start : own_experts.stop]) for load in loads)
    return rows


def _flops(run: _Run, each: _Pass) -> Iterator[MeasuredRow]:
    title, arrived = f"executed FLOPs, {each.name}", _arrived(run, each.ran)
    names = {node.id: layer_name(group) for group in run.graph.groups for node in group.nodes}
    planned = [_planned_flops(run, each, rank, arrived[rank], names) for rank in run.ranks]
    measured = [None if ran is None else _by_name(ran.flops, names) for ran in each.ran]
    known = [counted for counted in measured if counted is not None]
    for name in dict.fromkeys(name for of_rank in planned + known for name in of_rank):
        values = [
            (plan.get(name, 0), None if counted is None else counted.get(name, 0))
            for plan, counted in zip(planned, measured, strict=True)
        ]
        if all(value is not None for value, _ in values):
            yield from run.rows(title, name, "flops", values)
    evenly = [_planned_flops(run, each, rank, None, names) for rank in run.ranks]
    totals = [value for plan in evenly for value in plan.values()]
    if None not in totals:
        counted = [None if ran is None else sum(ran.flops.values()) for ran in each.ran]
        total = None if None in counted else sum(value or 0 for value in counted)
        yield row_of(title, "together", "flops", sum(value or 0 for value in totals), total)


def _planned_flops(
    run: _Run, each: _Pass, rank: int, arrived: Arrived | None, names: dict[str, str]
) -> dict[str, int | None]:
    earlier = run.own_tokens(rank).start
    planned: dict[str, int | None] = {}
    executed = executed_on_rank(run.graph, run.layout, rank, each.work[rank], arrived=arrived, num_earlier=earlier)
    for row in executed:
        name = names[row.node.id]
        before = planned.get(name, 0)
        planned[name] = None if row.flops is None or before is None else before + row.flops
    return planned


def _by_name(counted: dict[str, int], names: dict[str, str]) -> dict[str, int | None]:
    totals: Counter[str] = Counter()
    for node_id, flops in counted.items():
        totals[names.get(node_id, "outside any layer")] += flops
    return dict(totals)


def _traffic(run: _Run, each: _Pass) -> Iterator[MeasuredRow]:
    title, arrived = f"collectives, {each.name}", _arrived(run, each.ran)
    left = [None if ran is None else {name: sum(load) for name, load in ran.load.items()} for ran in each.ran]
    passes = [
        Pass(each.work[rank], run.job.prefill, run.item, arrived[rank], None if arrived[rank] is None else left[rank])
        for rank in run.ranks
    ]
    planned = [each.plan(rank, passes[rank]) for rank in run.ranks]
    measured = [None if ran is None else {_key(name): sent for name, sent in ran.handed.items()} for ran in each.ran]
    handed = {key for sent in measured if sent is not None for key in sent}
    keys = sorted(handed.union(*planned))
    for key in keys:
        known = [plan.get(key, Handed(0, 0)) for plan in planned]
        seen = [(None, None) if sent is None else sent.get(key, (0, 0)) for sent in measured]
        name = " ".join(key)
        calls = [(plan.calls, sent[0]) for plan, sent in zip(known, seen, strict=True)]
        sizes = [(plan.payload_bytes, sent[1]) for plan, sent in zip(known, seen, strict=True)]
        yield from run.rows(title, f"{name}, calls", "calls", calls)
        yield from run.rows(title, name, "bytes", sizes)


def _key(name: str) -> Key:
    axis, _, collective = name.partition(" ")
    return axis, collective


def _left_out(run: _Run) -> Iterator[str]:
    if run.layout.cp > 1:
        if run.job.decode:
            yield "left out: decode steps, since cp divides prefills alone"
        unplanned = _not_planned_along_cp(run)
        if unplanned:
            yield f"left out: executed FLOPs of {' and '.join(unplanned)}, whose blocks come from other ranks"


def _not_planned_along_cp(run: _Run) -> list[str]:
    names = {node.id: layer_name(group) for group in run.graph.groups for node in group.nodes}
    rows = executed_on_rank(run.graph, run.layout, 0, run.prefill.work[0])
    return list(dict.fromkeys(names[row.node.id] for row in rows if row.flops is None))


def _load_of_all(run: _Run) -> dict[str, list[int]]:
    """Number of choices of each expert in the prefill, over all ranks with different tokens."""
    total: dict[str, list[int]] = {}
    for rank, measured in enumerate(run.measured):
        if measured.prefill is None:
            return {}
        if run.place(rank).tp == 0:
            for name, load in measured.prefill.load.items():
                total[name] = [a + b for a, b in zip(total.get(name, [0] * len(load)), load, strict=True)]
    order = [node.id for node in run.graph.nodes if node.id in total and node.scope == "text"]
    return {name: total[name] for name in order}


def _sample(job: MeasureJob) -> Any:
    from l4spec.runtime.measure.run import RunShape

    return RunShape(job.prefill, job.decode, job.batch)


def _times(run: _Run) -> Iterator[MeasuredRow]:
    """Of the slowest rank: who waits for others takes as long."""
    prefills = [each.prefill_seconds for each in run.measured]
    steps = [each.decode_seconds for each in run.measured]
    for name, seconds in (("prefill", prefills), ("decode step", steps)):
        known = [value for value in seconds if value is not None]
        if known:
            yield row_of("time", f"{name}, of the slowest", "seconds", None, max(known), "shown")
