"""Allocations and timed pieces of the module of multi-head latent attention."""

from collections.abc import Iterator

from l4spec.layers.attention.ledger import Heads, allocate_attention, attended_pieces, rotated_pieces
from l4spec.layers.attention.positions import Rope
from l4spec.layers.attention.walk import Walk, walk
from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import Ledger, rms_norm, rotate, rotation_table
from l4spec.layers.declaration import Work
from l4spec.layers.mla.cost import absorbs
from l4spec.layers.mla.spec import MLASpec


def _allocate(spec: MLASpec, width: Width, work: Work, ledger: Ledger) -> None:
    """Query and latent, turned and normed; expanded keys and values inside attention; the output projection.

    Of prompts from their start: after a past, less is allocated where the expansion is absorbed.
    """
    tokens, item, walked = work.num_tokens, ledger.item, walk(spec.mask, work.num_queries, work.num_cached)
    qk_dim = spec.qk_nope_head_dim + spec.qk_rope_head_dim
    rope, shared = (tokens * count * spec.qk_rope_head_dim for count in (spec.num_heads, 1))
    latent, query = tokens * spec.kv_lora_rank * item, tokens * spec.num_heads * qk_dim * item
    if spec.q_lora_rank is not None:
        with ledger.holding(tokens * spec.q_lora_rank * item):
            rms_norm(ledger, tokens, spec.q_lora_rank, weighted=True)
        ledger.touch(query)
        ledger.free(tokens * spec.q_lora_rank * item)
    kept = query + 2 * (latent + shared * item)  # as projected, and as cached
    with ledger.holding(query + latent + shared * item):
        turned = 0
        if isinstance(spec.position, Rope):
            turned = (rope + shared) * item
            even = spec.qk_nope_head_dim % 2 == 0 and spec.kv_lora_rank % 2 == 0
            as_complex = spec.position.layout == "interleaved" and even
            name = f"rotation {spec.qk_rope_head_dim} {spec.position}"
            rotation_table(ledger, name, work.num_queries, spec.qk_rope_head_dim, as_complex=as_complex)
            rotate(ledger, rope, rope, as_complex=as_complex)
            with ledger.holding(rope * item):
                rotate(ledger, shared, shared, as_complex=as_complex)
        with ledger.holding(turned):
            rms_norm(ledger, tokens, spec.kv_lora_rank, weighted=True)
            ledger.touch(latent + shared * item)
            ledger.free(latent)
    with ledger.holding(kept + turned):
        _allocate_expanded(spec, width, work, ledger, walked)
    ledger.take(tokens * width.hidden_size * item)


def _allocate_expanded(spec: MLASpec, width: Width, work: Work, ledger: Ledger, walked: Walk) -> None:
    """Memory of whole queries, keys and values of every head in attention; then of its result, and the output."""
    tokens, rows, qk_dim = (
        work.num_tokens,
        work.num_sequences * walked.num_expanded,
        spec.qk_nope_head_dim + spec.qk_rope_head_dim,
    )
    whole = tokens * qk_dim + rows * (spec.qk_nope_head_dim + spec.v_head_dim) + rows * qk_dim
    heads = Heads(work.num_sequences, spec.num_heads, spec.num_heads, qk_dim, spec.v_head_dim, by_head=True)
    attended = tokens * spec.num_heads * max(qk_dim, spec.v_head_dim) * ledger.item
    joined = rows * (spec.kv_lora_rank + spec.qk_rope_head_dim) if walked.joined else 0
    with ledger.holding((spec.num_heads * whole + joined) * ledger.item):
        copied = allocate_attention(ledger, walked, heads)
    out = tokens * width.hidden_size * ledger.item
    lie_apart = spec.v_head_dim == 1 and not ledger.is_wide  # then torch, unlike oneDNN, adds the bias after
    ledger.touch(copied + (2 * out if spec.bias and lie_apart else out))
    ledger.free(attended)


def _pieces(spec: MLASpec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    """Latents normed and turned; then attention over the latents themselves, or over keys and values made of them."""
    tokens, heads, rank, rope = work.num_tokens, spec.num_heads, spec.kv_lora_rank, spec.qk_rope_head_dim
    qk_dim = spec.qk_nope_head_dim + rope
    if spec.q_lora_rank is not None:
        yield Piece("norm", (tokens * spec.q_lora_rank, spec.q_lora_rank))
    yield Piece("norm", (tokens * rank, rank))
    for count in (heads, 1):
        yield from rotated_pieces(spec.position, tokens * count, rope)
    yield Piece("write", (tokens * (rank + rope),), 2)  # latent and key as one, then into the cache
    walked = walk(spec.mask, work.num_queries, work.num_cached)
    if absorbs(spec, work.num_queries, work.num_cached):
        yield Piece(
            "write", (tokens * heads * (rank + rope),), 2
        )  # queries as one; what was attended, for the products
        if work.num_queries == 1:
            yield Piece("cached", (work.num_sequences, heads, walked.blocks[0].keys, rank + rope))
        else:
            yield from attended_pieces(walked, work.num_sequences * heads, rank + rope)
        return
    rows, widest = work.num_sequences * walked.num_expanded, max(qk_dim, spec.v_head_dim)
    yield Piece("write", (tokens * heads * qk_dim,))  # queries as one
    yield Piece("write", (rows * heads * qk_dim,))  # keys as one
    if qk_dim != spec.v_head_dim:
        yield Piece("write", (rows * heads * widest,))  # the narrower of them widened
        yield Piece("write", (tokens * heads * spec.v_head_dim,))  # what was attended, narrowed
    yield from attended_pieces(walked, work.num_sequences * heads, widest)
    if len(walked.blocks) > 1:
        yield Piece("write", (tokens * heads * widest,))


EAGER = EagerLayer(_allocate, _pieces, code="mla")
