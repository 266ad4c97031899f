"""The pieces of an attention layer besides its projections, block by block as `attention.compute` walks them."""

from collections.abc import Iterator

from l4spec.layers.attention.positions import NoPosition, Position, Rope
from l4spec.layers.attention.walk import BLOCK, Walk, walk
from l4spec.layers.declaration import Work
from l4spec.layers.gqa.spec import GQASpec, L2Norm, RMSQKNorm
from l4spec.layers.mla.cost import absorbs
from l4spec.layers.mla.spec import MLASpec
from planners.module.pieces import Piece


def between_gqa(spec: GQASpec, work: Work) -> Iterator[Piece]:
    """Heads normed, turned and scaled; keys and values into the cache; attention."""
    tokens, heads, kv_heads, dim = work.num_tokens, spec.num_heads, spec.num_kv_heads, spec.head_dim
    for count in (heads, kv_heads):
        if isinstance(spec.qk_norm, RMSQKNorm | L2Norm):
            yield Piece("norm", (tokens * count * dim, dim))
        yield from _turned(spec.position, tokens * count, dim)
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
    if spec.logit_softcap is not None:
        yield from _capped(spec, work, walked)
    else:
        yield from _blocks(walked, work.num_sequences * heads, dim)
    if len(walked.blocks) > 1:
        yield Piece("write", (tokens * heads * dim,))


def between_mla(spec: MLASpec, work: Work) -> Iterator[Piece]:
    """Latents normed and turned; then attention over the latents themselves, or over keys and values made of them."""
    tokens, heads, rank, rope = work.num_tokens, spec.num_heads, spec.kv_lora_rank, spec.qk_rope_head_dim
    qk_dim = spec.qk_nope_head_dim + rope
    if spec.q_lora_rank is not None:
        yield Piece("norm", (tokens * spec.q_lora_rank, spec.q_lora_rank))
    yield Piece("norm", (tokens * rank, rank))
    for count in (heads, 1):
        yield from _turned(spec.position, tokens * count, rope)
    yield Piece("write", (tokens * (rank + rope),), 2)  # latent and key as one, then into the cache
    walked = walk(spec.mask, work.num_queries, work.num_cached)
    if absorbs(spec, work.num_queries, work.num_cached):
        yield Piece(
            "write", (tokens * heads * (rank + rope),), 2
        )  # queries as one; what was attended, for the products
        if work.num_queries == 1:
            yield Piece("cached", (work.num_sequences, heads, walked.blocks[0].keys, rank + rope))
        else:
            yield from _blocks(walked, work.num_sequences * heads, rank + rope)
        return
    rows, width = work.num_sequences * walked.num_expanded, max(qk_dim, spec.v_head_dim)
    yield Piece("write", (tokens * heads * qk_dim,))  # queries as one
    yield Piece("write", (rows * heads * qk_dim,))  # keys as one
    if qk_dim != spec.v_head_dim:
        yield Piece("write", (rows * heads * width,))  # the narrower of them widened
        yield Piece("write", (tokens * heads * spec.v_head_dim,))  # what was attended, narrowed
    yield from _blocks(walked, work.num_sequences * heads, width)
    if len(walked.blocks) > 1:
        yield Piece("write", (tokens * heads * width,))


def _turned(position: Position, rows: int, dim: int) -> Iterator[Piece]:
    if isinstance(position, NoPosition):
        return
    turned = (position.rotary_dim or dim) if isinstance(position, Rope) else dim
    is_halves = isinstance(position, Rope) and position.layout == "half"
    yield Piece("rotate_halves" if is_halves else "rotate_pairs", (rows * turned,))
    if turned != dim:
        yield Piece("write", (rows * dim,))


def _blocks(walked: Walk, units: int, dim: int) -> Iterator[Piece]:
    for block in walked.blocks:
        if block.causal:
            yield Piece("causal", (units * block.count, block.queries, dim))
        else:
            yield Piece("masked", (units * block.count, block.queries, block.keys, dim))


def _capped(spec: GQASpec, work: Work, walked: Walk) -> Iterator[Piece]:
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
