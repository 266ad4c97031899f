"""How long one step takes on one device: the bound, the estimate, and what bounds each kind of layer.

bound     per kind of layer the longest of compute, memory and links at their published peaks, as if each were
          perfectly overlapped with the others; kinds follow each other.
estimate  every resource at the share of its peak that an engine was measured to reach, one after the other, plus
          constants per block, per collective and per step.
"""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from operator import add, attrgetter
from typing import Protocol

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.sharding.layout import Layout
from planners.collectives.collectives import ForwardPass, collectives
from planners.counts.weights import Scheme
from planners.latency_types import KindLatency, StepLatency
from planners.timing.efficiency import ServingEfficiency
from planners.timing.expert_kernels import correction, kernel_of, work_of_experts
from planners.timing.grouped_matmul import GroupedMatmul, GroupedMatmulLaws
from planners.timing.layer_demand import (
    UNIFORM,
    KindProfile,
    Routing,
    Step,
    attended,
    covered_experts,
    experts_part,
    kind_name,
    profile,
    rows_of,
)
from planners.timing.machine import Machine, link_seconds, missing

ATTENTION_DTYPE = "bf16"
MOST_TOTALS = 4096
_ONE_ROW = ForwardPass(tokens=1, logit_rows=1)


class Shares(Protocol):
    """What share of each published peak is reached, and what a collective takes besides, in seconds."""

    @property
    def memory(self) -> float: ...  # noqa: D102
    @property
    def cache(self) -> float: ...  # noqa: D102
    @property
    def attention(self) -> float: ...  # noqa: D102
    @property
    def links(self) -> float: ...  # noqa: D102
    @property
    def collective(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class ResourceSeconds:
    """What layers use in one step: seconds of each resource at its published peak, and counts of what takes constants.

    `blocks` counts blocks (an attention and a feed-forward layer are half a block each), `moe_blocks` those whose
    feed-forward is routed. `experts` is what measured kernels add to the estimate of routed layers, or take from it.
    """

    weight_read: float = 0.0
    cached: float = 0.0
    matmul: float = 0.0
    attention: float = 0.0
    links: float = 0.0
    collectives: float = 0.0
    blocks: float = 0.0
    moe_blocks: float = 0.0
    experts: float = 0.0

    def __add__(self, other: "ResourceSeconds") -> "ResourceSeconds":
        return ResourceSeconds(*map(add, _values(self), _values(other)))

    def __mul__(self, part: float) -> "ResourceSeconds":
        return ResourceSeconds(*(part * value for value in _values(self)))

    def estimate(self, factors: ServingEfficiency, wide: bool) -> float:
        """Seconds that an engine takes, every resource after the other; `wide` when many sequences decode."""
        block = factors.layer + (factors.wide_layer if wide else 0.0)
        of_routing = self.moe_blocks * (factors.moe_layer - factors.layer)
        return self.at(factors, matmul=factors.compute, block=block) + of_routing + self.experts

    def at(self, shares: "Shares", *, matmul: float, block: float) -> float:
        """Seconds at shares of the published peaks and constants a collective and block, one after the other."""
        return (
            self.weight_read / shares.memory
            + self.cached / shares.cache
            + self.matmul / matmul
            + self.attention / shares.attention
            + self.links / shares.links
            + self.collectives * shares.collective
            + self.blocks * block
        )


_values = attrgetter(*(each.name for each in fields(ResourceSeconds)))


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """Seconds at published peaks that all layers of a kind take: always, and per row, pair, cached token and expert."""

    kind: KindProfile
    weight_read: float
    expert: float
    cached_token: float
    matmul_row: float
    pair: float
    moved_row: float
    links_row: float
    collectives: int
    blocks: float
    moe_blocks: float

    def use(self, step: Step, ep: int, routing: Routing) -> ResourceSeconds:
        """What these layers use in a step."""
        amounts = self.amounts(step, rows_of(self.kind, step), ep, routing)
        return ResourceSeconds(*amounts, self.collectives, self.blocks, self.moe_blocks)

    def amounts(self, step: Step, rows: float, ep: int, routing: Routing) -> tuple[float, float, float, float, float]:
        """The values of `use` that depend on the step, in the order of its fields; `rows` are `rows_of` this kind.

        A simulation adds them up step after step, so what a kind has not is not asked for.
        """
        kind = self.kind
        read, matmul = self.weight_read, rows * self.matmul_row
        if kind.num_experts:
            read += covered_experts(kind, step, ep, routing) * self.expert
            matmul *= self._hottest(ep, routing)
        pairs, cached = attended(kind, step) if kind.bound is not None else (0.0, 0.0)
        return (
            read + rows * self.moved_row,
            cached * self.cached_token,
            matmul,
            pairs * self.pair,
            rows * self.links_row,
        )

    def __add__(self, other: "UnitCosts") -> "UnitCosts":
        """Of both kinds together, which must depend on a step in the same way."""
        return UnitCosts(self.kind, *map(add, _costs(self), _costs(other)))

    def _hottest(self, ep: int, routing: Routing) -> float:
        """What the busiest rank's experts compute over the mean; the router and shared experts are equal everywhere."""
        kind = self.kind
        if not kind.num_experts or ep == 1:
            return 1.0
        return 1.0 + experts_part(kind) * (routing.hottest(kind, ep) - 1.0)


_costs = attrgetter(*(each.name for each in fields(UnitCosts) if each.name != "kind"))


@dataclass(frozen=True, eq=False)
class StepModel:
    """A model under a scheme and a layout on a machine, ready to be asked for step after step.

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
    """Who proposes tokens that decode steps check (`planners.timing.drafts`)."""
    laws: GroupedMatmulLaws | None = None
    """Of the engine's expert kernels; None prices experts by the engine's shares of the peaks."""
    totals: dict[Step, ResourceSeconds] = field(default_factory=dict)
    """What steps use in all, kept because searches and fits ask for the same steps again."""

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
        """Why no time can be computed on this machine; None if it can."""
        dtypes = tuple(sorted({dtype for kind in self.kinds for dtype, _ in kind.flops_per_row} | {ATTENTION_DTYPE}))
        return missing(self.machine, self.layout, dtypes)

    def uses(self, step: Step) -> tuple[ResourceSeconds, ...]:
        """What every kind of layer uses in a step."""
        used = tuple(rates.use(step, self.layout.ep, self.routing) for rates in self.rates)
        if self.laws is None or self.efficiency is None or not step.tokens:
            return used
        return tuple(
            use if law is None else replace(use, experts=self._by_law(law, kind, step))
            for use, law, kind in zip(used, self._kernels, self.kinds, strict=True)
        )

    def _by_law(self, law: GroupedMatmul, kind: KindProfile, step: Step) -> float:
        assert self.efficiency is not None, "corrections are of an estimate"
        work = work_of_experts(kind, step, self.layout, self.routing)
        return kind.count * correction(law, work, self.machine, self.efficiency)

    @cached_property
    def _kernels(self) -> tuple[GroupedMatmul | None, ...]:
        """The measured kernel of each kind's experts."""
        assert self.laws is not None, "asked for with laws only"
        return tuple(kernel_of(self.laws, self.machine, kind) for kind in self.kinds)

    def used(self, step: Step) -> ResourceSeconds:
        """What all layers and the sends between stages use in a step. `unknown` must be None."""
        if self.laws is not None:
            return sum(self.uses(step), self._sends(step))
        read = cached = matmul = attention = links = 0.0
        tokens, logit_rows = step.tokens, step.rows_of_logits
        for rates in self._joined:
            rows = logit_rows if rates.kind.per_logit_row else tokens
            of_kind = rates.amounts(step, rows, self.layout.ep, self.routing)
            read += of_kind[0]
            cached += of_kind[1]
            matmul += of_kind[2]
            attention += of_kind[3]
            links += of_kind[4]
        used = ResourceSeconds(read, cached, matmul, attention, links, *self._constants)
        return used + self._sends(step) if self.layout.pp > 1 else used

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
        """`rates`, with kinds in one that depend on a step in the same way: neither routed nor with a cache."""
        joined: dict[object, UnitCosts] = {}
        for rates in self.rates:
            kind = rates.kind
            plain = kind.bound is None and not kind.num_experts
            key = kind.per_logit_row if plain else id(kind)
            joined[key] = joined[key] + rates if key in joined else rates
        return tuple(joined.values())

    def time(self, step: Step, *, server: bool = True) -> StepLatency:
        """The time of a step, kind by kind; `server` adds what a front end costs per sequence."""
        factors, wide, uses = self.efficiency, self._wide(step), self.uses(step)
        times = tuple(
            KindLatency.of(
                kind.name,
                kind.count,
                use.matmul + use.attention,
                use.weight_read + use.cached,
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
        total = self.totals.get(step)
        if total is None:
            if len(self.totals) >= MOST_TOTALS:
                self.totals.clear()
            total = self.totals[step] = self.used(step)
        return max(total.estimate(self.efficiency, self._wide(step)), self._host(step, server))

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
            pair=count * kind.pair_flops / self._peak(ATTENTION_DTYPE),
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
        """What a micro-batch takes on its way from stage to stage."""
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
