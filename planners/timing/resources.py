"""Resources that layers of one kind use in a step, and the time this takes at the shares of peaks an engine reaches."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import hypot
from operator import add, attrgetter
from typing import Protocol, TypeVar

from planners.timing.efficiency import ServingEfficiency
from planners.timing.layer_demand import (
    KindProfile,
    Routing,
    Step,
    attended,
    covered_experts,
    experts_part,
    rows_of,
    scored,
)


class Shares(Protocol):
    """Share of each published peak that an engine reaches, and the seconds of a collective beside its bytes."""

    @property
    def memory(self) -> float:
        """Of memory bandwidth, for weights and activations."""

    @property
    def cache(self) -> float:
        """Of memory bandwidth, for caches."""

    @property
    def attention(self) -> float:
        """Of bf16 matmuls, for scores and their sums."""

    @property
    def links(self) -> float:
        """Of a link's bandwidth."""

    @property
    def collective(self) -> float:
        """Seconds of a call."""


@dataclass(slots=True)  # frozen, it would take five times as long to make
class ResourceSeconds:
    """Resource use of layers in one step: seconds of each resource at its published peak, and counts for constant
    terms.

    `moved` is reading and writing activations between kernels. `tensor_cores` is `matmul` divided by the share that its
    number formats reach, relative to fp8 (`MATMUL_REACH`). `blocks` counts blocks (an attention and a feed-forward
    layer are half a block each), `moe_blocks` those whose feed-forward is routed. `experts` is the correction of routed
    layers by measured kernels.
    """

    weight_read: float = 0.0
    cached: float = 0.0
    matmul: float = 0.0
    attention: float = 0.0
    links: float = 0.0
    moved: float = 0.0
    tensor_cores: float = 0.0
    collectives: float = 0.0
    blocks: float = 0.0
    moe_blocks: float = 0.0
    experts: float = 0.0

    @property
    def memory(self) -> float:
        """Seconds of memory traffic: weights, cache and activations between kernels."""
        return self.weight_read + self.cached + self.moved

    def __add__(self, other: "ResourceSeconds") -> "ResourceSeconds":
        return ResourceSeconds(*map(add, _values(self), _values(other)))

    def __mul__(self, part: float) -> "ResourceSeconds":
        return ResourceSeconds(*(part * value for value in _values(self)))

    def estimate(self, factors: ServingEfficiency, wide: bool) -> float:
        """Seconds that an engine takes for layers of one kind; `wide` when many sequences decode."""
        block = factors.layer + (factors.wide_layer if wide else 0.0)
        of_routing = self.moe_blocks * (factors.moe_layer - factors.layer)
        return (
            matmul_seconds(self.weight_read, self.tensor_cores, factors)
            + self._besides(factors, block)
            + of_routing
            + self.experts
        )

    def in_turn(self, shares: "Shares", *, matmul: float, block: float) -> float:
        """Seconds at shares of the published peaks and constants a collective and block, one after the other."""
        return self.weight_read / shares.memory + self.matmul / matmul + self._besides(shares, block)

    def _besides(self, shares: "Shares", block: float) -> float:
        """All but matmuls and their weights."""
        return (
            self.moved / shares.memory
            + self.cached / shares.cache
            + self.attention / shares.attention
            + self.links / shares.links
            + self.collectives * shares.collective
            + self.blocks * block
        )


_values = attrgetter(*(each.name for each in fields(ResourceSeconds)))


def matmul_seconds(weight_read: float, tensor_cores: float, factors: ServingEfficiency) -> float:
    """Seconds of matmuls that read their weights while they multiply: between the longer of both and their sum."""
    return hypot(weight_read / factors.memory, tensor_cores / factors.compute)


RowAmounts = tuple[float, float, float, float, float]
"""Amounts that depend on a step's rows alone: weights, matmul, links, moved and tensor cores of `ResourceSeconds`."""


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """Seconds at published peaks that all layers of a kind take.

    Always, and per row, pair, FLOP of an index (`score`), cached token and expert.
    """

    kind: KindProfile
    weight_read: float
    expert: float
    cached_token: float
    matmul_row: float
    tensor_row: float
    pair: float
    score: float
    moved_row: float
    links_row: float
    collectives: int
    blocks: float
    moe_blocks: float

    def use(self, step: Step, ep: int, routing: Routing) -> ResourceSeconds:
        """Resource use of these layers in a step."""
        weight_read, matmul, links, moved, tensor_cores = self.of_rows(step, ep, routing)
        cached, attention = self.of_cache(step)
        return ResourceSeconds(
            weight_read,
            cached,
            matmul,
            attention,
            links,
            moved,
            tensor_cores,
            self.collectives,
            self.blocks,
            self.moe_blocks,
        )

    def of_rows(self, step: Step, ep: int, routing: Routing) -> RowAmounts:
        """The part of `use` that depends on the number of rows of a step, and not on how long their contexts are."""
        kind, rows = self.kind, rows_of(self.kind, step)
        read, multiplied = self.weight_read, rows
        if kind.num_experts:
            read += covered_experts(kind, step, ep, routing) * self.expert
            multiplied *= self._hottest(ep, routing)
        return (
            read,
            multiplied * self.matmul_row,
            rows * self.links_row,
            rows * self.moved_row,
            multiplied * self.tensor_row,
        )

    def of_cache(self, step: Step) -> tuple[float, float]:
        """`cached` and `attention` of `use`."""
        pairs, cached = attended(self.kind, step)
        return cached * self.cached_token, pairs * self.pair + scored(self.kind, step) * self.score

    def __add__(self, other: "UnitCosts") -> "UnitCosts":
        """Of both kinds together, which must depend on a step in the same way."""
        return UnitCosts(self.kind, *map(add, _costs(self), _costs(other)))

    def _hottest(self, ep: int, routing: Routing) -> float:
        """Compute of the busiest rank relative to the mean; the router and shared experts are equal everywhere."""
        kind = self.kind
        if not kind.num_experts or ep == 1:
            return 1.0
        return 1.0 + experts_part(kind) * (routing.hottest(kind, ep) - 1.0)


class StepAmounts:
    """Resource use of steps, independent of the shares an engine reaches; cached, since the same steps recur."""

    def __init__(self, rates: Sequence[UnitCosts], ep: int, routing: Routing) -> None:
        self.rates, self.ep, self.routing = rates, ep, routing
        self.with_cache = [rate for rate in rates if rate.kind.bound is not None]
        self._rows: dict[tuple[float, float], tuple[RowAmounts, ...]] = {}
        self._cache: dict[Step, tuple[float, float]] = {}

    def of_rows(self, step: Step) -> tuple[RowAmounts, ...]:
        """`UnitCosts.of_rows` of each kind."""
        key = step.tokens, step.rows_of_logits
        amounts = self._rows.get(key)
        if amounts is None:
            amounts = tuple(rate.of_rows(step, self.ep, self.routing) for rate in self.rates)
            _keep(self._rows, key, amounts)
        return amounts

    def of_cache(self, step: Step) -> tuple[float, float]:
        """`UnitCosts.of_cache`, summed over kinds."""
        amounts = self._cache.get(step)
        if amounts is None:
            cached = attention = 0.0
            for rate in self.with_cache:
                of_reads, of_pairs = rate.of_cache(step)
                cached += of_reads
                attention += of_pairs
            _keep(self._cache, step, amounts := (cached, attention))
        return amounts


MOST_KEPT = 1024
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def _keep(known: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    """Keep a value, and of others at most `MOST_KEPT`."""
    if len(known) >= MOST_KEPT:
        known.clear()
    known[key] = value


_costs = attrgetter(*(each.name for each in fields(UnitCosts) if each.name != "kind"))
