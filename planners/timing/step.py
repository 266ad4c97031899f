"""Time of one step on one device: the bound, the estimate, and the bounding resource of each kind of layer.

bound     per kind of layer the longest of compute, memory and links at their published peaks, as if each were
          perfectly overlapped with the others; kinds follow each other.
estimate  every resource at the share of its peak that an engine was measured to reach, plus constants per block, per
          collective and per step. A kind's matmuls read their weights while they multiply: both together take the
          root of the sum of squares, between the longer of them and their sum. All else is one after the other.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.sharding.layout import Layout
from planners.collectives.collectives import ForwardPass, collectives
from planners.counts.flops import count_flops
from planners.counts.weights import Scheme
from planners.latency_types import KindLatency, StepLatency
from planners.timing.efficiency import MATMUL_REACH, ServingEfficiency
from planners.timing.layer_demand import (
    UNIFORM,
    KindProfile,
    Routing,
    Step,
    kind_name,
    profile,
)
from planners.timing.machine import Machine, link_seconds, missing
from planners.timing.resources import ResourceSeconds, StepAmounts, UnitCosts, matmul_seconds

if TYPE_CHECKING:
    from planners.timing.grouped_matmul import GroupedMatmul, GroupedMatmulLaws

ATTENTION_DTYPE = "bf16"
INDEX_DTYPE = "fp8"
"""Number format of an index's scores: deepseek-ai/DeepSeek-V3.2-Exp inference/model.py, `fp8_index`."""
_OF_ANY_EFFICIENCY = ("kinds", "rates", "_sent", "_joined", "_constants", "_amounts")
_ONE_ROW = ForwardPass(tokens=1, logit_rows=1)


@dataclass(frozen=True, eq=False)
class StepModel:
    """Times of a model under a scheme and a layout on a machine, for one step after another.

    With pipeline stages a step is one micro-batch on its way through all of them.
    """

    graph: LayerGraph
    scheme: Scheme
    layout: Layout
    machine: Machine
    kv_dtype_bytes: int
    efficiency: ServingEfficiency | None
    routing: Routing = UNIFORM
    drafts: "Drafts | None" = None
    """The module whose drafts decode steps check (`planners.timing.drafts`)."""
    laws: "GroupedMatmulLaws | None" = None
    """Of the engine's expert kernels; None prices experts by the engine's shares of the peaks."""

    @cached_property
    def kinds(self) -> tuple[KindProfile, ...]:
        """The kinds of layers, with their rates."""
        return profile(self.graph, self.scheme, self.layout, self.kv_dtype_bytes)

    @cached_property
    def rates(self) -> tuple[UnitCosts, ...]:
        """Every kind's rates on this machine. `unknown` must be None."""
        return tuple(self._rates(kind) for kind in self.kinds)

    @cached_property
    def unknown(self) -> str | None:
        """Reason why no time can be computed on this machine; None if it can."""
        dtypes = tuple(sorted({dtype for kind in self.kinds for dtype, _ in kind.flops_per_row} | {ATTENTION_DTYPE}))
        return missing(self.machine, self.layout, dtypes)

    def with_efficiency(self, efficiency: ServingEfficiency) -> "StepModel":
        """The same deployment with other factors; results that do not depend on them are shared."""
        other = replace(self, efficiency=efficiency)
        if self.unknown is None:
            vars(other).update({name: getattr(self, name) for name in _OF_ANY_EFFICIENCY})
        return other

    def uses(self, step: Step) -> tuple[ResourceSeconds, ...]:
        """Resource use of every kind of layer in a step."""
        used = tuple(rates.use(step, self.layout.ep, self.routing) for rates in self.rates)
        if self.laws is None or self.efficiency is None or not step.tokens:
            return used
        return tuple(
            use if law is None else replace(use, experts=self._by_law(law, kind, step))
            for use, law, kind in zip(used, self._kernels, self.kinds, strict=True)
        )

    def _by_law(self, law: "GroupedMatmul", kind: KindProfile, step: Step) -> float:
        from planners.timing.expert_kernels import correction, work_of_experts

        assert self.efficiency is not None, "corrections are of an estimate"
        work = work_of_experts(kind, step, self.layout, self.routing)
        return kind.count * correction(law, work, self.machine, self.efficiency)

    @cached_property
    def _kernels(self) -> "tuple[GroupedMatmul | None, ...]":
        """The measured kernel of each kind's experts."""
        from planners.timing.expert_kernels import kernel_of

        assert self.laws is not None, "asked for with laws only"
        return tuple(kernel_of(self.laws, self.machine, kind) for kind in self.kinds)

    def used(self, step: Step) -> ResourceSeconds:
        """Resource use of all layers and of the sends between stages in a step. `unknown` must be None."""
        return sum(self.uses(step), self._sends(step))

    @cached_property
    def _amounts(self) -> StepAmounts:
        return StepAmounts(self._joined, self.layout.ep, self.routing)

    @cached_property
    def _constants(self) -> tuple[float, float, float]:
        """Collectives, blocks and routed blocks, which every step has."""
        joined = self._joined
        return (
            sum(rates.collectives for rates in joined),
            sum(rates.blocks for rates in joined),
            sum(rates.moe_blocks for rates in joined),
        )

    @cached_property
    def _joined(self) -> tuple[UnitCosts, ...]:
        """`rates`, with kinds in one that have neither matmuls nor a cache: norms, sums and the embedding."""
        joined: dict[object, UnitCosts] = {}
        for rates in self.rates:
            kind = rates.kind
            plain = kind.bound is None and not kind.flops_per_row
            key = kind.per_logit_row if plain else id(kind)
            joined[key] = joined[key] + rates if key in joined else rates
        return tuple(joined.values())

    def time(self, step: Step, *, server: bool = True) -> StepLatency:
        """The time of a step, kind by kind; `server` adds the front end's time per sequence."""
        factors, wide, uses = self.efficiency, self._wide(step), self.uses(step)
        times = tuple(
            KindLatency.of(
                kind.name,
                kind.count,
                use.matmul + use.attention,
                use.memory,
                use.links,
                None if factors is None else use.estimate(factors, wide),
            )
            for kind, use in zip(self.kinds, uses, strict=True)
        )
        if self.layout.pp > 1:
            times = (*times, self._pipeline(step))
        device = sum(time.estimate_seconds or 0.0 for time in times)
        return StepLatency.of(gathered(times), max(0.0, self._host(step, server) - device))

    def seconds(self, step: Step, *, server: bool = True) -> float:
        """The estimate of `time`, without its parts. The model must have fitted factors."""
        assert self.efficiency is not None, "ask for `efficiency` first"
        return max(self._estimate(step), self._host(step, server))

    def _estimate(self, step: Step) -> float:
        """The sum of `ResourceSeconds.estimate` over kinds, without an object for each."""
        factors = self.efficiency
        assert factors is not None, "ask for `efficiency` first"
        if self.laws is not None:
            return sum(use.estimate(factors, self._wide(step)) for use in (*self.uses(step), self._sends(step)))
        rows = step.tokens, step.rows_of_logits, self._wide(step)
        of_rows = self._seconds_of_rows.get(rows)
        if of_rows is None:
            of_rows = self._seconds_of_rows[rows] = self._estimate_of_rows(step)
        cached, attention = self._amounts.of_cache(step)
        return of_rows + cached / factors.cache + attention / factors.attention

    @cached_property
    def _seconds_of_rows(self) -> dict[tuple[float, float, bool], float]:
        """Cached results of `_estimate_of_rows`: the steps of a simulation often have the same rows."""
        return {}

    def _estimate_of_rows(self, step: Step) -> float:
        """All of the estimate but reads of caches and attention to them."""
        factors = self.efficiency
        assert factors is not None, "ask for `efficiency` first"
        matmuls = links = moved = 0.0
        for weight_read, _, of_links, of_moves, tensor_cores in self._amounts.of_rows(step):
            matmuls += matmul_seconds(weight_read, tensor_cores, factors)
            links += of_links
            moved += of_moves
        collectives, blocks, moe_blocks = self._constants
        besides = ResourceSeconds(0.0, 0.0, 0.0, 0.0, links, moved, 0.0, collectives, blocks, moe_blocks)
        if self.layout.pp > 1:
            besides += self._sends(step)
        return matmuls + besides.estimate(factors, self._wide(step))

    @cached_property
    def request_seconds(self) -> float:
        """Seconds of a request before a scheduler gets it; 0 without fitted factors."""
        if self.efficiency is None:
            return 0.0
        routed = any(kind.num_experts for kind in self.kinds)
        return self.efficiency.request + (self.efficiency.moe_request if routed else 0.0)

    @cached_property
    def tile_bound_seconds(self) -> float:
        """Seconds of the vision tower for one image tile, cut over tp, at the bf16 peak; 0 without tower or peak."""
        flops, peak = count_flops(self.graph, context=1, batch=1).vision_per_tile, self.machine.peak(ATTENTION_DTYPE)
        return flops / self.layout.tp / peak if flops and peak else 0.0

    @cached_property
    def tile_seconds(self) -> float:
        """The same at the share of the peak that bf16 matmuls reach; 0 without factors."""
        if self.efficiency is None:
            return 0.0
        return matmul_seconds(0.0, self.tile_bound_seconds / MATMUL_REACH[ATTENTION_DTYPE], self.efficiency)

    def head_seconds(self, step: Step) -> float:
        """The head's part of `seconds`."""
        assert self.efficiency is not None, "ask for `efficiency` first"
        heads = (rates.use(step, self.layout.ep, self.routing) for rates in self.rates if rates.kind.per_logit_row)
        return sum(use.estimate(self.efficiency, self._wide(step)) for use in heads)

    def _wide(self, step: Step) -> bool:
        return self.efficiency is not None and step.decode > self.efficiency.wide_from

    def _host(self, step: Step, server: bool) -> float:
        """Seconds between steps below which the host cannot go."""
        factors = self.efficiency
        if factors is None or not server or not step.decode:
            return 0.0
        return factors.host_step + factors.host_sequence * step.decode

    def _rates(self, kind: KindProfile) -> UnitCosts:
        bandwidth, count = self.machine.bandwidth, kind.count
        in_block = kind.name.startswith(("attention", "ffn"))
        seconds, calls = self._sent.get(kind_key(kind.group), (0.0, 0))
        return UnitCosts(
            kind=kind,
            weight_read=count * kind.weight_bytes / bandwidth,
            expert=count * kind.expert_bytes / bandwidth,
            cached_token=count * kind.cache_bytes / bandwidth,
            matmul_row=count * sum(flops / self._peak(dtype) for dtype, flops in kind.flops_per_row),
            tensor_row=count
            * sum(flops / self._peak(dtype) / MATMUL_REACH.get(dtype, 1.0) for dtype, flops in kind.flops_per_row),
            pair=count * kind.pair_flops / self._peak(ATTENTION_DTYPE),
            score=count / self._peak(INDEX_DTYPE),
            moved_row=count * kind.moved_bytes_per_token / bandwidth,
            links_row=seconds,
            collectives=calls,
            blocks=count / 2 if in_block else 0.0,
            moe_blocks=count if kind.num_experts else 0.0,
        )

    def _peak(self, dtype: str) -> float:
        peak = self.machine.peak(dtype)
        assert peak is not None, "ask `unknown` first"
        return peak

    @cached_property
    def _sent(self) -> dict[tuple[str, int] | None, tuple[float, int]]:
        """Seconds of collectives per row, and calls, of all stages together: by the layers that call them, or None.

        None are the sends from stage to stage, which each micro-batch waits for, one after the other.
        """
        sent: dict[tuple[str, int] | None, tuple[float, int]] = {}
        for stage in range(self.layout.pp):
            for each in collectives(self.graph, self.layout, _ONE_ROW, stage):
                key = None if each.group is None else kind_key(each.group)
                seconds, calls = sent.get(key, (0.0, 0))
                sent[key] = seconds + link_seconds(self.machine, self.layout, each), calls + each.calls
        return sent

    def _sends(self, step: Step) -> ResourceSeconds:
        """Resource use of a micro-batch's sends between stages."""
        seconds, calls = self._sent.get(None, (0.0, 0))
        return ResourceSeconds(links=step.tokens * seconds, collectives=calls)

    def _pipeline(self, step: Step) -> KindLatency:
        sends, factors = self._sends(step), self.efficiency
        estimate = None if factors is None else sends.estimate(factors, self._wide(step))
        return KindLatency.of("stage to stage", self.layout.pp - 1, 0.0, 0.0, sends.links, estimate)


@dataclass(frozen=True, slots=True, eq=False)
class Drafts:
    """The module that drafts, and for each drafted token the probability that it is accepted if all before were."""

    module: StepModel
    acceptance: tuple[float, ...]


@kept_with(maxsize=1024)
def step_model(
    graph: LayerGraph,
    scheme: Scheme,
    layout: Layout,
    *,
    machine: Machine,
    kv_dtype_bytes: int,
    efficiency: ServingEfficiency | None,
    routing: Routing = UNIFORM,
) -> StepModel:
    """The model of a deployment with fitted factors: the same object for the same deployment."""
    return StepModel(graph, scheme, layout, machine, kv_dtype_bytes, efficiency, routing)


def kind_key(group: LayerGroup) -> tuple[str, int]:
    """The same for groups whose layers are one kind of a step."""
    return kind_name(group), id(group.declaration)


def gathered(times: tuple[KindLatency, ...]) -> tuple[KindLatency, ...]:
    """Kinds of one name in one row, in order of first appearance."""
    rows: dict[str, KindLatency] = {}
    for time in times:
        known = rows.get(time.name)
        rows[time.name] = time if known is None else known + time
    return tuple(rows.values())
