"""Allocations and timed pieces of the module of grouped-query attention."""

from collections.abc import Iterator

from l4spec.layers.attention.ledger import Heads, allocate_attention, attended_pieces, rotated_pieces
from l4spec.layers.attention.positions import NoPosition, Rope
from l4spec.layers.attention.walk import BLOCK, Walk, walk
from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import WIDE, Ledger, rms_norm, rotate, rotation_table
from l4spec.layers.declaration import Work
from l4spec.layers.gqa.spec import GQASpec, L2Norm, RMSQKNorm


def _allocate(spec: GQASpec, width: Width, work: Work, ledger: Ledger) -> None:
    """Projections, turned and normed in fp32; attention; the output projection with all of them still in memory."""
    tokens, walked = work.num_tokens, walk(spec.mask, work.num_queries, work.num_cached)
    heads = Heads(
        work.num_sequences,
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.value_dim,
        capped=spec.logit_softcap is not None,
        sinks=spec.sinks,
    )
    query, key = (tokens * count * spec.head_dim * ledger.item for count in (spec.num_heads, spec.num_kv_heads))
    value = tokens * spec.num_kv_heads * spec.value_dim * ledger.item
    widest = tokens * spec.num_heads * max(spec.head_dim, spec.value_dim if spec.is_fused else 0) * ledger.item
    attended = widest if spec.is_fused else tokens * spec.num_heads * spec.value_dim * ledger.item
    with ledger.holding(query):
        _positioned(spec, work, ledger, spec.num_heads)
        with ledger.holding(key):
            projected = _positioned(spec, work, ledger, spec.num_kv_heads, kept=spec.values_from_keys)
            if spec.temperature is not None:
                ledger.once(f"temperature {spec.temperature}", work.num_queries * WIDE, 3 * work.num_queries * WIDE)
                ledger.touch(query // ledger.item * WIDE + (0 if ledger.is_wide else query))
            if not spec.values_from_keys:
                projected = value
                ledger.take(value)
            value_bytes = _take_values(spec, work, ledger, projected)
            with ledger.holding(key + value if walked.joined else 0):
                copied = allocate_attention(ledger, walked, heads)
            copied = _gate(spec, tokens, tokens * spec.num_heads * spec.value_dim * ledger.item, copied, ledger)
            ledger.touch(copied + tokens * width.hidden_size * ledger.item)
            ledger.free(attended + value_bytes)
    ledger.take(tokens * width.hidden_size * ledger.item)


def _take_values(spec: GQASpec, work: Work, ledger: Ledger, projected: int) -> int:
    """Values as projected (`projected` bytes), normed and scaled, one after the other; gives the bytes of the last."""
    rows, left = work.num_tokens * spec.num_kv_heads, projected
    value = rows * spec.value_dim * ledger.item
    if spec.value_norm is not None:
        rms_norm(ledger, rows, spec.value_dim, weighted=False)
        ledger.free(left)
        left = value
    if spec.value_scale is not None:
        ledger.take(value)
        ledger.free(left)
        left = value
    return left


def _gate(spec: GQASpec, tokens: int, attended: int, copied: int, ledger: Ledger) -> int:
    """Memory of the gate, its sigmoid, and the gated output; returns the bytes still copied for o_proj."""
    if spec.output_gate is None:
        return copied
    gate = tokens * spec.num_heads * ledger.item * (spec.value_dim if spec.output_gate == "elementwise" else 1)
    ledger.touch(2 * gate)
    with ledger.holding(gate):
        ledger.touch(attended)
    return gate + attended


def _positioned(spec: GQASpec, work: Work, ledger: Ledger, num_heads: int, *, kept: bool = False) -> int:
    """Memory of norm and rotation of `num_heads` heads; with `kept`, the projected tensor stays beside the result.

    Returns the bytes that stay.
    """
    rows = work.num_tokens * num_heads
    elements, left = rows * spec.head_dim, 0
    size = elements * ledger.item
    if isinstance(spec.qk_norm, RMSQKNorm):
        is_wide = spec.qk_norm.over == "width"
        vectors, width = (work.num_tokens, num_heads * spec.head_dim) if is_wide else (rows, spec.head_dim)
        rms_norm(ledger, vectors, width, weighted=True, unit_offset=spec.qk_norm.unit_offset)
        kept, left = _replaced(ledger, size, kept, left)
    if not isinstance(spec.position, NoPosition):
        partial = spec.position.rotary_dim if isinstance(spec.position, Rope) else None
        dim = partial or spec.head_dim
        as_complex = spec.position.layout == "interleaved" and spec.head_dim % 2 == 0
        name = f"rotation {dim} {spec.position}"
        by_row = ledger.has_places and isinstance(spec.position, Rope) and spec.position.sections is not None
        places = work.num_tokens if by_row else work.num_queries
        rotation_table(ledger, name, places, dim, as_complex=as_complex)
        rotate(ledger, elements, rows * dim, as_complex=as_complex)
        ledger.take(size)
        kept, left = _replaced(ledger, size, kept, left)
    if isinstance(spec.qk_norm, L2Norm):
        rms_norm(ledger, rows, spec.head_dim, weighted=False)
        kept, left = _replaced(ledger, size, kept, left)
    return left


def _replaced(ledger: Ledger, size: int, kept: bool, left: int) -> tuple[bool, int]:
    """A result of `size` bytes is there: what it was made of is freed, unless it is `kept`; `left` stays then."""
    if kept:
        return False, size
    ledger.free(size)
    return False, left


def _pieces(spec: GQASpec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    """Heads normed, turned and scaled; keys and values into the cache; attention."""
    tokens, heads, kv_heads, dim = work.num_tokens, spec.num_heads, spec.num_kv_heads, spec.head_dim
    for count in (heads, kv_heads):
        if isinstance(spec.qk_norm, RMSQKNorm | L2Norm):
            yield Piece("norm", (tokens * count * dim, dim))
        yield from rotated_pieces(spec.position, tokens * count, dim)
    if spec.value_norm is not None:
        yield Piece("norm", (tokens * kv_heads * spec.value_dim, spec.value_dim))
    if spec.output_gate is not None:
        yield Piece("scale", (tokens * heads * dim,))
    if spec.temperature is not None:
        yield Piece("scale", (tokens * heads * dim,))
    walked = walk(spec.mask, work.num_queries, work.num_cached)
    if work.num_queries == 1:
        units, keys = work.num_sequences * kv_heads, walked.blocks[0].keys
        yield Piece("cached", (units, heads / kv_heads, keys, dim))
        return
    yield Piece("write", (2 * tokens * kv_heads * dim,))  # into the cache
    if walked.joined:
        yield Piece("write", (2 * work.num_sequences * walked.num_expanded * kv_heads * dim,))
    if not spec.is_fused:
        yield from _unfused(spec, work, walked)
    else:
        yield from attended_pieces(walked, work.num_sequences * heads, dim)
    if len(walked.blocks) > 1:
        yield Piece("write", (tokens * heads * dim,))


def _unfused(spec: GQASpec, work: Work, walked: Walk) -> Iterator[Piece]:
    """Scores as products and six passes over them (scale, cap, mask, softmax), in bands of queries."""
    units, group = work.num_sequences * spec.num_kv_heads, spec.num_heads // spec.num_kv_heads
    for block in walked.blocks:
        for first in range(0, block.queries, BLOCK):
            queries = min(BLOCK, block.queries - first)
            keys = first + queries if block.causal else block.keys
            rows, times = group * queries, units * block.count
            yield Piece("product", (rows, spec.head_dim, keys), times)
            yield Piece("product", (rows, keys, spec.head_dim), times)
            yield Piece("add", (times * rows * keys,), 6)


EAGER = EagerLayer(_allocate, _pieces, code="gqa", dense_ring=True)
