"""Demand of a step on one device, by layer kind: FLOPs, bytes and messages, from the declared operations.

A profile has no hardware in it: weights and rates per token, computed once per graph, scheme and layout. A step then
costs a few multiplications per kind.
"""

from dataclasses import dataclass, field, replace
from math import prod
from typing import NamedTuple

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers.declaration import (
    AttentionPairs,
    Bound,
    Declaration,
    Elementwise,
    HeadProducts,
    Matmul,
    Operation,
    Work,
)
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import degree_of, shard_shape
from l4spec.spec.storage import PlainLaw
from l4spec.units import ceil_div
from planners.counts.kv_cache import bytes_per_token, entry_bytes
from planners.counts.weights import Scheme, stored_size, target_of
from planners.device.activations import ACTIVATION_BYTES
from planners.timing.context import FAR, mean_read, of_context
from planners.timing.expert_coverage import (
    busiest_share,
    coverage_of_busiest,
    coverage_of_histogram,
    expected_coverage,
)


class CacheRead(NamedTuple):
    """An entry of a cache: its law, bytes of a row on one device, and the most rows that a query reads (None: all)."""

    bound: Bound
    bytes: int
    most: int | None


@dataclass(frozen=True, slots=True, eq=False)
class KindProfile:
    """`count` equal layers on one device: rates per token of one layer, before any step is known.

    `flops_per_row` is by number format of the matmul, and so of those that selective checkpointing runs again
    `core_flops_per_row`. `expert_bytes` is one expert's shard; `num_experts`, `experts_per_token` describe its routing.
    `cache_bytes` is per cached token; `bound` the cache's law, and `reads` its entries where they grow by several.
    Traffic is in the list of `planners.collectives.collectives`.
    """

    name: str
    group: LayerGroup
    count: int
    flops_per_row: tuple[tuple[str, int], ...]
    core_flops_per_row: tuple[tuple[str, int], ...]
    per_logit_row: bool
    weight_bytes: int
    expert_bytes: int
    num_experts: int
    experts_per_token: int
    cache_bytes: int
    bound: Bound | None
    pair_flops: int
    moved_bytes_per_token: int
    reads: tuple[CacheRead, ...] = ()
    has_index: bool = False
    """True if an index scores earlier tokens to choose those that are attended to."""


class Step(NamedTuple):
    """Workload of one forward pass on a device: decoding sequences, and tokens of prompts.

    `decode` sequences each bring one token that is the last of `context` tokens. `prompt_tokens` new tokens are in
    prompts of `prompt_length` tokens, of which the first `prompt_cached` are in the cache. `logit_rows` counts logits;
    None takes one per decoding sequence and prompt.
    """

    decode: float = 0.0
    context: float = 1.0
    prompt_tokens: float = 0.0
    prompt_length: float = 0.0
    prompt_cached: float = 0.0
    logit_rows: float | None = None

    @property
    def tokens(self) -> float:
        """New tokens of the step."""
        return self.decode + self.prompt_tokens

    @property
    def rows_of_logits(self) -> float:
        """Rows for which the head runs."""
        if self.logit_rows is not None:
            return self.logit_rows
        return self.decode + (self.prompt_tokens / self.prompt_length if self.prompt_length else 0.0)


@dataclass(frozen=True, slots=True)
class Routing:
    """Distribution of tokens over experts: uniform, or by `shares`, each expert's share of all choices.

    `layers` gives shares for some layers by node id, which precede those for all.
    """

    shares: tuple[float, ...] = ()
    layers: tuple[tuple[str, tuple[float, ...]], ...] = ()
    known: dict[tuple[int, float, int], float] = field(default_factory=dict, compare=False, repr=False)
    """Cache of computed shares: a histogram of 24 layers takes a millisecond, and many steps need it."""

    def covered(self, kind: KindProfile, num_tokens: float) -> float:
        """Distinct experts that `num_tokens` tokens reach, of all the layer's experts; the mean over equal layers."""
        return self.reached(kind.group, num_tokens)

    def busiest(self, kind: KindProfile, num_tokens: float, ep: int) -> float:
        """Distinct experts on the busiest of `ep` ranks with contiguous parts; the mean over equal layers.

        Under uniform routing it is the rank with the most experts: otherwise ranks differ by chance alone, which is
        left out.
        """
        if not self.shares and not self.layers:
            return self.covered(kind, num_tokens) * _fullest_part(kind, ep)
        tokens = _rounded(num_tokens)
        key = (id(kind.group), tokens, ep)
        if key not in self.known:
            self.known[key] = self._busiest(kind, tokens, ep)
        return self.known[key]

    def _busiest(self, kind: KindProfile, num_tokens: float, ep: int) -> float:
        named, total = dict(self.layers), 0.0
        for node in kind.group.nodes:
            shares = named.get(node.id, self.shares) or (1.0,) * kind.num_experts
            total += coverage_of_busiest(shares, kind.experts_per_token, num_tokens, ep)
        return total / kind.group.count

    def hottest(self, kind: KindProfile, ep: int) -> float:
        """Tokens of the busiest of `ep` ranks over the mean, from the shares alone; the mean over equal layers."""
        if ep == 1 or (not self.shares and not self.layers):
            return _fullest_part(kind, ep) * ep
        key = (id(kind.group), -1.0, ep)
        if key not in self.known:
            named, total = dict(self.layers), 0.0
            for node in kind.group.nodes:
                shares = named.get(node.id, self.shares) or (1.0,) * kind.num_experts
                total += busiest_share(shares, ep) * ep
            self.known[key] = total / kind.group.count
        return self.known[key]

    def reached(self, group: LayerGroup, num_tokens: float) -> float:
        """As `covered`, for the layers of a group."""
        routed = group.declaration.routed
        assert routed is not None, "only routed layers have experts"
        num_experts, experts_per_token = routed.num_experts, routed.num_per_token
        if not self.shares and not self.layers:
            return expected_coverage(num_experts, experts_per_token, num_tokens)
        known = dict(self.layers)
        total = 0.0
        for node in group.nodes:
            shares = known.get(node.id, self.shares)
            if shares:
                total += coverage_of_histogram(shares, experts_per_token, num_tokens)
            else:
                total += expected_coverage(num_experts, experts_per_token, num_tokens)
        return total / group.count


UNIFORM = Routing()


def _fullest_part(kind: KindProfile, ep: int) -> float:
    """The part of all experts that the rank with the most of them holds."""
    return ceil_div(kind.num_experts, ep) / kind.num_experts if kind.num_experts else 1 / ep


def _rounded(tokens: float) -> float:
    """Whole numbers up to 256, beyond them steps of 1/64: coverage grows more slowly than tokens, so by less."""
    if tokens <= 256:
        return float(round(tokens))
    step = 2.0 ** (int(tokens).bit_length() - 7)
    return round(tokens / step) * step


@kept_with(maxsize=1024)
def profile(
    graph: LayerGraph, scheme: Scheme, layout: Layout, kv_dtype_bytes: int, *, training: bool = False
) -> tuple[KindProfile, ...]:
    """Every kind of layer of the language model, in graph order; the degrees tp and ep of `layout` cut its tensors."""
    cut = Layout(tp=layout.tp, ep=layout.ep)
    profiles: dict[object, KindProfile] = {}
    for group in graph.groups:
        if group.first.scope == "text":
            kind = _profile_of(graph, group, scheme, cut, kv_dtype_bytes, training=training)
            key = (kind.name, id(group.declaration))
            profiles[key] = replace(kind, count=profiles[key].count + kind.count) if key in profiles else kind
    return tuple(profiles.values())


def of_tokens(declaration: Declaration, *, training: bool) -> tuple[tuple[Operation, ...], int]:
    """Operations that rates are taken from, and of how many tokens: of many where experts choose them in training."""
    routed = declaration.routed
    if not training or routed is None or routed.trained_per_token == routed.num_per_token:
        return declaration.operations(Work(1, 1)), 1
    return declaration.operations(Work(1, FAR, phase="train")), FAR


def _profile_of(
    graph: LayerGraph, group: LayerGroup, scheme: Scheme, layout: Layout, kv_dtype_bytes: int, *, training: bool
) -> KindProfile:
    node, routed = group.first, group.declaration.routed
    one, tokens = of_tokens(group.declaration, training=training)
    sharded = any(degree_of(dim, layout) > 1 for p in group.declaration.parameters for dim in p.dims)
    moved = sum(op.elements * (op.reads + op.writes) for op in one if isinstance(op, Elementwise)) // tokens
    weights, experts = _stored(graph, group, scheme, layout)
    cache = group.declaration.cache
    bound = cache[0].bound if cache else None
    several = len({(entry.bound, entry.num_chosen) for entry in cache}) > 1
    return KindProfile(
        name=kind_name(group),
        group=group,
        count=group.count,
        flops_per_row=_matmul_rates(graph, group, scheme, layout, one, tokens),
        core_flops_per_row=_matmul_rates(graph, group, scheme, layout, _of_core(group.declaration, one), tokens),
        per_logit_row=node.role == "head",
        weight_bytes=weights,
        expert_bytes=experts,
        num_experts=routed.num_experts if routed else 0,
        experts_per_token=routed.num_per_token if routed else 0,
        cache_bytes=bytes_per_token(group, layout, kv_dtype_bytes) if bound else 0,
        bound=bound,
        reads=_reads(group, layout, kv_dtype_bytes) if several else (),
        has_index=of_context(group.declaration, FAR, FAR - 1)[1] > 0,
        pair_flops=sum(op.flops // op.pairs // layout.tp for op in one if isinstance(op, AttentionPairs)),
        moved_bytes_per_token=moved * ACTIVATION_BYTES // (layout.tp if sharded else 1),
    )


def _reads(group: LayerGroup, layout: Layout, kv_dtype_bytes: int) -> tuple[CacheRead, ...]:
    """Bytes that a query reads per entry, for caches whose entries grow by laws of their own."""
    return tuple(
        CacheRead(entry.bound, entry_bytes(entry, layout, kv_dtype_bytes), entry.num_chosen)
        for entry in group.declaration.cache
    )


def kind_name(group: LayerGroup) -> str:
    """Name of equal layers in the rows of times."""
    role = group.first.role
    if role in ("attention", "ffn"):
        return f"{role} ({group.first.label})"
    return role if role in ("embedding", "head") else "norms and adds"


def _of_core(declaration: Declaration, operations: tuple[Operation, ...]) -> tuple[Operation, ...]:
    return tuple(op for op in operations if op.name in declaration.recomputed)


def _matmul_rates(
    graph: LayerGraph, group: LayerGroup, scheme: Scheme, layout: Layout, operations: tuple[Operation, ...], tokens: int
) -> tuple[tuple[str, int], ...]:
    """FLOPs that one of the `tokens` of these operations of one layer costs one device, by number format.

    A routed token's rows spread over ep ranks, and each of the ep ranks sends tokens of its own: the two cancel.
    """
    rates: dict[str, int] = {}
    for op in operations:
        if isinstance(op, Matmul):
            shape = shard_shape(group.first, op.weight, layout)
            law = scheme.table.law_for(target_of(graph, group.first, op.weight))
            dtype = law.dtype if isinstance(law, PlainLaw) else scheme.table.compute_dtype
            rates[dtype] = rates.get(dtype, 0) + 2 * op.rows * prod(shape[-2:])
        elif isinstance(op, HeadProducts):  # not of weights: in the format of activations, heads divided by tp
            rates["bf16"] = rates.get("bf16", 0) + op.flops // layout.tp
    return tuple((dtype, flops // tokens) for dtype, flops in rates.items())


def _stored(graph: LayerGraph, group: LayerGroup, scheme: Scheme, layout: Layout) -> tuple[int, int]:
    """Bytes that one layer holds on one device: everything that each step reads, and one routed expert.

    An embedding table is only looked up: it counts nothing here.
    """
    if group.first.role == "embedding":
        return 0, 0
    every, one_expert = 0, 0
    nodes = group.nodes if scheme.depends_on_layer else group.nodes[:1]
    for node in nodes:
        for parameter in node.declaration.parameters:
            shape = shard_shape(node, parameter, layout)
            size = stored_size(graph, node, parameter, shape, scheme).total_bytes
            if parameter.is_per_expert:
                one_expert += size // shape[0]
            else:
                every += size
    return every // len(nodes), one_expert // len(nodes)


def covered_experts(kind: KindProfile, step: Step, ep: int, routing: Routing = UNIFORM) -> float:
    """Experts of one device whose weights a step reads: the tokens of all `ep` ranks choose among all experts."""
    return routing.busiest(kind, step.tokens * ep, ep) if kind.num_experts else 0.0


def experts_part(kind: KindProfile) -> float:
    """The routed experts' part of a token's FLOPs, taken as their part of the bytes that it meets."""
    experts = kind.experts_per_token * kind.expert_bytes
    return experts / max(experts + kind.weight_bytes, 1)


def rows_of(kind: KindProfile, step: Step) -> float:
    """Rows that go through the matmuls of this kind: new tokens, or rows of logits for the head."""
    return step.rows_of_logits if kind.per_logit_row else step.tokens


def attended(kind: KindProfile, step: Step) -> tuple[float, float]:
    """(query, key) pairs of one layer, and cached tokens that it reads or writes."""
    if kind.bound is None:
        return 0.0, 0.0
    pairs = read = 0.0
    if step.decode:
        seen = mean_read(kind.bound, step.context)
        pairs, read = step.decode * seen, step.decode * seen
        if kind.reads:
            last = max(round(step.context), 1)
            pairs = step.decode * pairs_of(kind, last, last - 1)
            read = step.decode * _rows_read(kind, last)
    if step.prompt_tokens:
        length, cached = round(step.prompt_length), round(step.prompt_cached)
        of_prompt = pairs_of(kind, length, cached)
        new = max(length - cached, 1)
        pairs += step.prompt_tokens / new * of_prompt
        sequences = step.prompt_tokens / new
        written = sequences if kind.bound.is_state else step.prompt_tokens * _written_share(kind)
        seen_of_cache = _rows_read(kind, cached) if kind.reads else min(cached, kind.bound.num_kept(length))
        read += written + sequences * seen_of_cache
    return pairs, read


def _rows_read(kind: KindProfile, context: int) -> float:
    """Reads of one query from a cache of several laws, in tokens of `cache_bytes` bytes."""
    read = sum(each.bytes * min(each.bound.num_read(context), each.most or context) for each in kind.reads)
    return read / kind.cache_bytes


def _written_share(kind: KindProfile) -> float:
    """Share of the `cache_bytes` of a token that a new token writes: below 1 if entries summarize several tokens."""
    return sum(each.bytes / each.bound.tokens_per_row for each in kind.reads) / kind.cache_bytes if kind.reads else 1


def pairs_of(kind: KindProfile, length: int, cached: int) -> float:
    """Attended pairs of one sequence of `length` tokens whose first `cached` are there already."""
    return of_context(kind.group.declaration, length, cached)[0]


def index_flops(kind: KindProfile, length: int, cached: int) -> float:
    """FLOPs of an index for these tokens of one layer, on every rank of tp: it is not divided."""
    return of_context(kind.group.declaration, length, cached)[1] if kind.has_index else 0.0


def scored(kind: KindProfile, step: Step) -> float:
    """FLOPs of an index in a step of one layer; 0 where there is none."""
    if not kind.has_index:
        return 0.0
    last, flops = max(round(step.context), 1), 0.0
    if step.decode:
        flops = step.decode * index_flops(kind, last, last - 1)
    if step.prompt_tokens:
        length, cached = round(step.prompt_length), round(step.prompt_cached)
        flops += step.prompt_tokens / max(length - cached, 1) * index_flops(kind, length, cached)
    return flops
