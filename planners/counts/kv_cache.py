"""Bytes of a model's cache: by each layer's law of growth, and by the policy of an engine.

A layer's law is the mathematical minimum (`l4spec.layers.declaration.Bound`). An engine may keep more: every token in
every layer, whole blocks, groups of layers of equal size, pools in a fixed ratio. So every figure names its policy.
"""

from fractions import Fraction
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

from l4spec.errors import UserError
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers.declaration import Bound, CacheEntry
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import shard_size
from l4spec.units import ceil_div
from planners.catalog.engines import BoundedKv, CellsKv, Engine, FullKv, LayerGroupsKv, TwoPoolsKv
from planners.plan_types import CacheLayer, KvCache

KV_DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1, "int8": 1}


class CacheRow(NamedTuple):
    """Equal caching layers: their cache by one law of growth, and their number.

    `bytes_per_token` on one device: of a row of the cache, which summarizes several tokens if it is compressed.
    """

    bytes_per_token: int
    bound: Bound
    count: int  # type: ignore[assignment]  # tuple has a method of this name


def cache_dtype_bytes(dtype: str) -> int:
    """Bytes of one cached element; UserError for an unknown format."""
    if dtype not in KV_DTYPE_BYTES:
        raise UserError(f"unknown KV cache dtype '{dtype}'", hint=f"one of: {', '.join(KV_DTYPE_BYTES)}")
    return KV_DTYPE_BYTES[dtype]


def caching_groups(graph: LayerGraph) -> tuple[LayerGroup, ...]:
    """The groups of equal layers that keep a cache."""
    return tuple(group for group in graph.groups if group.declaration.cache)


def bytes_per_token(group: LayerGroup, layout: Layout, dtype_bytes: int) -> int:
    """Cache bytes per token of one layer on one device; of a recurrent state, bytes per sequence.

    KV heads are divided by tp, and replicated where tp exceeds them; an MLA latent is whole on every rank.
    """
    return sum(entry_bytes(entry, layout, dtype_bytes) for entry in group.declaration.cache)


def rows_of(
    group: LayerGroup, layout: Layout, dtype_bytes: int, state_bytes: int = 0, count: int | None = None
) -> tuple[CacheRow, ...]:
    """Cache of equal layers on one device, a row for each law of growth; `count` layers (None: all)."""
    sizes: dict[Bound, int] = {}
    for entry in group.declaration.cache:
        sizes[entry.bound] = sizes.get(entry.bound, 0) + entry_bytes(entry, layout, dtype_bytes, state_bytes)
    return tuple(CacheRow(size, bound, group.count if count is None else count) for bound, size in sizes.items())


def entry_bytes(entry: CacheEntry, layout: Layout, dtype_bytes: int, state_bytes: int = 0) -> int:
    """Bytes of one row of an entry on one device, as `bytes_per_token` counts them."""
    element = entry.bytes_per_element(max(dtype_bytes, state_bytes) if entry.bound.is_state else dtype_bytes)
    return prod(shard_size(dim, layout) for dim in entry.dims) * element


def state_bytes_of(engine: Engine) -> int:
    """Bytes of a state's number that an engine keeps at least; 0 where it is as the kind of layer demands."""
    policy = engine.kv
    return policy.state_bytes.value if isinstance(policy, CellsKv) and policy.state_bytes else 0


def cache_bytes(rows: tuple[CacheRow, ...], engine: Engine, context: int, sequences: int) -> int:
    """Bytes that an engine's policy keeps on one device for `sequences` sequences of `context` tokens.

    `rows` may be those of a device, of a stage or of the whole model.
    """
    if not context or not sequences or not rows:
        return 0
    if isinstance(engine.kv, LayerGroupsKv):
        return sequences * blocks_per_sequence(rows, engine, context) * block_bytes(rows, engine)
    widest = _widest_window(rows) if isinstance(engine.kv, TwoPoolsKv) else 0
    return sum(
        row.count * row.bytes_per_token * tokens_kept(row.bound, engine, context, sequences, widest) for row in rows
    )


def _widest_window(rows: tuple[CacheRow, ...]) -> int:
    return max((row.bound.size or 0 for row in rows if row.bound.kind == "window"), default=0)


@lru_cache(maxsize=512)
def tokens_kept(bound: Bound, engine: Engine, context: int, sequences: int, widest_window: int) -> int:
    """Tokens that one layer keeps for all sequences together under a policy that treats layers one by one.

    `widest_window` is that of any layer of the model, 0 without windows: pools in a fixed ratio grow together.
    """
    policy = engine.kv
    if bound.is_state:
        return bound.num_kept(context) * sequences
    if isinstance(policy, CellsKv):
        pad = policy.pad_cells.value
        if not bound.is_local or bound.size is None:
            return _round_up(bound.num_kept(context) * sequences, pad)
        reach = bound.size * sequences + policy.ubatch_tokens.value
        return min(_round_up(context * sequences, pad), _round_up(reach, pad))
    kept = bound.num_kept(context) if isinstance(policy, BoundedKv) or not bound.is_local else context
    if engine.block_size_tokens is not None:
        kept = _round_up(kept, engine.block_size_tokens.value)
    if not isinstance(policy, TwoPoolsKv):
        return kept * sequences
    return _in_pools(policy, bound, kept, sequences, widest_window)


def _in_pools(policy: TwoPoolsKv, bound: Bound, kept: int, sequences: int, widest_window: int) -> int:
    """Tokens of the pool that a layer belongs to, for sequences of `kept` tokens (SGLang).

    The pool of windows is a share of the full one, which must then be larger than its own tokens where windows would
    not fit otherwise. That of chunks is full * ((1 - p) + p * chunk / full), in whole numbers so that it never shrinks
    as the context grows.
    """
    if bound.kind == "chunk" and bound.size is not None:
        mix = Fraction(str(policy.hybrid_kvcache_ratio.value))
        return ceil(((1 - mix) * kept + mix * min(kept, bound.size)) * sequences)
    share = Fraction(str(policy.swa_full_tokens_ratio.value))
    full = max(kept * sequences, ceil(min(kept, widest_window) * sequences / share))
    return ceil(share * full) if bound.kind == "window" else full


def _layers_by_law(rows: tuple[CacheRow, ...]) -> dict[Bound, int]:
    counts: dict[Bound, int] = {}
    for row in rows:
        counts[row.bound] = counts.get(row.bound, 0) + row.count
    return counts


def layer_group_size(rows: tuple[CacheRow, ...]) -> int:
    """Layers that share a block: the smallest number of layers that grow by one law (vLLM's hybrid manager)."""
    return min(_layers_by_law(rows).values())


def tokens_of_block(rows: tuple[CacheRow, ...], engine: Engine) -> int:
    """Tokens of a block. Beside states so many, in whole default blocks, that a layer's block has room for a state.

    vLLM, verify_and_update_config of hybrid models: cdiv(bytes of a state, 16 * bytes per token) * 16.
    """
    step = engine.block_size_tokens.value if engine.block_size_tokens else 1
    state = max((row.bytes_per_token for row in rows if row.bound.is_state), default=0)
    per_token = max((row.bytes_per_token for row in rows if not row.bound.is_state), default=0)
    return _round_up(max(step, ceil_div(state, per_token)), step) if state and per_token else step


def block_bytes(rows: tuple[CacheRow, ...], engine: Engine) -> int:
    """Bytes of a block: the tokens of a block for one group of layers, which all keep equal bytes per token.

    A state takes a layer's part of a block, or where no layer keeps tokens the bytes it has.
    """
    widths = {row.bytes_per_token for row in rows if not row.bound.is_state}
    if len(widths) > 1:
        raise UserError(
            f"{engine.name} needs layers that cache the same bytes per token, found {sorted(widths)}",
            hint="use --engine full",
        )
    if not widths:
        return layer_group_size(rows) * max(row.bytes_per_token for row in rows)
    return layer_group_size(rows) * tokens_of_block(rows, engine) * widths.pop()


def num_layer_groups(rows: tuple[CacheRow, ...]) -> int:
    """Groups of `layer_group_size` layers of one law; a group that is not full is padded."""
    size = layer_group_size(rows)
    return sum(ceil_div(count, size) for count in _layers_by_law(rows).values())


def blocks_per_sequence(rows: tuple[CacheRow, ...], engine: Engine, context: int) -> int:
    """Blocks that one sequence takes: per group whole blocks for the tokens that its law keeps, or for its states."""
    size, block = layer_group_size(rows), tokens_of_block(rows, engine)
    policy = engine.kv
    states = policy.state_blocks.value if isinstance(policy, LayerGroupsKv) and policy.state_blocks else 1
    return sum(
        ceil_div(count, size) * (states if bound.is_state else ceil_div(bound.num_kept(context), block))
        for bound, count in _layers_by_law(rows).items()
    )


def tokens_in_blocks(rows: tuple[CacheRow, ...], engine: Engine, num_blocks: int) -> int:
    """Tokens that a pool of `num_blocks` blocks holds while no local layer has reached its bound, as engines log it.

    vLLM up to 0.19: groups of states count as if they grew with the tokens, so that the log is too small for hybrids.
    """
    if isinstance(engine.kv, LayerGroupsKv):
        return num_blocks // num_layer_groups(rows) * tokens_of_block(rows, engine)
    return num_blocks * (engine.block_size_tokens.value if engine.block_size_tokens else 1)


def tokens_of_requests(rows: tuple[CacheRow, ...], engine: Engine, num_blocks: int, context: int) -> int:
    """Tokens that a pool of blocks holds in requests of `context` tokens, as vLLM from 0.24 on logs it."""
    return num_blocks * context // blocks_per_sequence(rows, engine, context)


def requests_in_blocks(rows: tuple[CacheRow, ...], engine: Engine, num_blocks: int, context: int) -> float:
    """Requests of `context` tokens that a pool of blocks holds, as engines log it: a quotient, not rounded down."""
    if isinstance(engine.kv, LayerGroupsKv):
        return num_blocks / blocks_per_sequence(rows, engine, context)
    return num_blocks / ceil_div(context, engine.block_size_tokens.value if engine.block_size_tokens else 1)


def tokens_in_pool(rows: tuple[CacheRow, ...], engine: Engine, pool_bytes: int) -> int:
    """Tokens that fit a pool of bytes on one device: whole blocks only, no bound reached yet."""
    if isinstance(engine.kv, LayerGroupsKv):
        return tokens_in_blocks(rows, engine, pool_bytes // block_bytes(rows, engine))
    per_token = growth_per_token(rows)
    block = engine.block_size_tokens.value if engine.block_size_tokens else 1
    return pool_bytes // (per_token * block) * block


def growth_per_token(rows: tuple[CacheRow, ...]) -> int:
    """Bytes that a token adds while no bound is reached; of compressed rows its share, rounded up."""
    grown: dict[int, int] = {}
    for row in rows:
        if not row.bound.is_state:
            tokens = row.bound.tokens_per_row
            grown[tokens] = grown.get(tokens, 0) + row.count * row.bytes_per_token
    return sum(ceil_div(size, tokens) for tokens, size in grown.items())


def _round_up(value: int, step: int) -> int:
    return ceil_div(value, step) * step


def model_rows(graph: LayerGraph, layout: Layout, dtype_bytes: int, state_bytes: int = 0) -> tuple[CacheRow, ...]:
    """Cache rows of all layers on one device of a layout without pipeline."""
    return tuple(row for group in caching_groups(graph) for row in rows_of(group, layout, dtype_bytes, state_bytes))


def explain_policy(engine: Engine) -> str:
    """One line on an engine's cache policy."""
    text = {
        FullKv: "every layer keeps every token",
        BoundedKv: "local layers keep at most their chunk or window",
        LayerGroupsKv: "layers in groups of equal size and law; local groups keep at most their bound",
        TwoPoolsKv: "a pool for full layers and one for local layers, in a fixed ratio",
        CellsKv: "local layers keep their window per sequence plus a batch, in padded cells",
    }[type(engine.kv)]
    return text if engine.block_size_tokens is None else f"{text}; blocks of {engine.block_size_tokens.value} tokens"


@kept_with(maxsize=16)
def plan_cache(graph: LayerGraph, engine: Engine, *, dtype: str, context: int, batch: int) -> KvCache:
    """The whole model's cache, before sharding. `bytes_per_token_global` counts entries that grow with every token."""
    whole, size = Layout(), cache_dtype_bytes(dtype)
    by_group = {group: rows_of(group, whole, size, state_bytes_of(engine)) for group in caching_groups(graph)}
    rows = tuple(row for of_group in by_group.values() for row in of_group)
    widest = _widest_window(rows)
    layers = tuple(
        CacheLayer(
            label=group.first.label,
            kind=group.first.kind,
            law=row.bound.kind,
            bound=row.bound.size,
            num_layers=row.count,
            bytes_per_token_per_layer=row.bytes_per_token,
            tokens_kept=_kept_by(row.bound, engine, context, widest, tokens_of_block(rows, engine)),
            bytes=row.bytes_per_token * _kept_by(row.bound, engine, context, widest, tokens_of_block(rows, engine)),
        )
        for group, of_group in by_group.items()
        for row in of_group
    )
    return KvCache(
        bytes=cache_bytes(rows, engine, context, batch),
        bytes_per_token_unbounded=growth_per_token(rows),
        bytes_per_token_global=growth_per_token(tuple(r for r in rows if r.bound.kind in ("full", "compressed"))),
        policy=engine.name,
        policy_explained=explain_policy(engine),
        dtype=dtype,
        context=context,
        batch=batch,
        layers=layers,
    )


def _kept_by(bound: Bound, engine: Engine, context: int, widest_window: int, block: int) -> int:
    if isinstance(engine.kv, LayerGroupsKv) and not bound.is_state:
        return _round_up(bound.num_kept(context), block)
    return tokens_kept(bound, engine, context, 1, widest_window) if context else 0
