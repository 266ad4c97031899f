"""Allocations and timed pieces of `l4spec.layers.attention.compute`: masks, scores, results."""

from collections.abc import Iterator
from dataclasses import dataclass

from l4spec.layers.attention.positions import NoPosition, Position, Rope
from l4spec.layers.attention.walk import BLOCK, Block, Walk
from l4spec.layers.common.eager import Piece
from l4spec.layers.common.ledger import INDEX, WIDE, Ledger


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries, keys and values of `sequences` sequences. No fused kernel takes `capped` scores or `sinks`.

    `by_head`: keys are stored head by head, so that chunks of several sequences are copied to form a batch.
    """

    sequences: int
    num_heads: int
    num_kv_heads: int
    dim: int
    value_dim: int
    capped: bool = False
    by_head: bool = False
    sinks: bool = False

    @property
    def is_fused(self) -> bool:
        """True if a fused kernel computes the attention, which stores no scores."""
        return not self.capped and not self.sinks


def allocate_attention(ledger: Ledger, walk: Walk, heads: Heads) -> int:
    """Allocate the output of attention; returns the bytes of its copy if heads must be concatenated."""
    if walk.cut:
        return _windows(ledger, walk.blocks, heads)
    width = max(heads.dim, heads.value_dim) if heads.is_fused else heads.value_dim
    sizes = [size for block in walk.blocks for size in _block(ledger, block, heads, _lie_apart(walk, heads))]
    attended = sum(sizes)
    if len(sizes) > 1:
        ledger.touch(attended)  # the joined results
    is_one = heads.num_heads == 1 or walk.blocks[0].queries == 1
    as_given = heads.is_fused and heads.dim == heads.value_dim  # results lie as queries do, padded ones by head
    lies_by_token = len(sizes) == 1 and width == heads.value_dim and (is_one or as_given)
    return 0 if lies_by_token else attended * heads.value_dim // width


def _windows(ledger: Ledger, blocks: tuple[Block, ...], heads: Heads) -> int:
    """Windows of a grid, cut out and laid back: band by band of the grid, each area by area."""
    across = 1 if len(blocks) == 1 else 2
    for first in range(0, len(blocks), across):
        band = 0
        for place, block in enumerate(blocks[first : first + across]):
            size = sum(_block(ledger, block, heads, lie_apart=True))
            ledger.touch(size if place == 0 else 0)  # windows one below the other lie as the area does
            band += size
        ledger.touch(band if across > 1 else 0)  # the joined areas
    tokens = heads.sequences * sum(block.count * block.queries for block in blocks)
    ledger.touch(tokens * heads.num_heads * heads.dim * ledger.item if across > 1 else 0)  # the joined bands
    return 0


def _lie_apart(walk: Walk, heads: Heads) -> bool:
    """True if whole chunks are copied to form a batch: several chunks, several sequences, and a partial last chunk."""
    several = heads.sequences > 1 and any(block.whole and block.count > 1 for block in walk.blocks)
    return walk.folded and several and len({block.queries for block in walk.blocks}) > 1


def _block(ledger: Ledger, block: Block, heads: Heads, lie_apart: bool) -> Iterator[int]:
    """Take the results of a block and yield their sizes."""
    sequences, pairs, width = heads.sequences * block.count, block.queries * block.keys, max(heads.dim, heads.value_dim)
    if block.masked:
        places = INDEX * (block.queries + block.keys)
        moved = INDEX * block.queries if block.windowed else 0  # where each query's window begins, beside two masks
        ledger.once(f"band {block.mask_name}", pairs, places + 2 * pairs + max(pairs, moved))
    queries, keys = sequences * block.queries * heads.num_heads, sequences * block.keys * heads.num_kv_heads
    folded = queries * heads.dim + keys * (heads.dim + heads.value_dim) if lie_apart else 0
    if heads.by_head and heads.sequences > 1 and block.count > 1 and not lie_apart:
        folded = keys * heads.dim
    padded = 0
    if heads.is_fused and heads.dim != heads.value_dim:  # the fused kernels take one width
        padded = keys * width if heads.value_dim < heads.dim else (queries + keys) * width
    with ledger.holding(((folded if block.whole else 0) + padded) * ledger.item):
        if not heads.is_fused:
            sizes = list(_unfused(ledger, block, heads))
        else:
            sizes = [queries * width * ledger.item]
            ledger.touch((pairs * ledger.item if block.masked else 0) + queries * WIDE + sizes[0])
            ledger.take(sizes[0])
    yield from sizes


def _unfused(ledger: Ledger, block: Block, heads: Heads) -> Iterator[int]:
    """Bands of BLOCK queries, each with its scores: capped, masked, widened for the softmax."""
    sequences, item = heads.sequences * block.count, ledger.item
    kept = 2 if block.masked or block.causal else 1
    for first in range(0, block.queries, BLOCK):
        queries = min(BLOCK, block.queries - first)
        keys = first + queries if block.causal else block.keys
        scores = sequences * heads.num_heads * queries * keys
        by_group = sequences * queries * heads.num_heads * heads.dim * item if queries > 1 else 0
        grouped = by_group if heads.num_heads > heads.num_kv_heads else 0
        copied = sequences * keys * heads.num_kv_heads * heads.dim * item if sequences > 1 else 0
        copied_values = copied // heads.dim * heads.value_dim
        out = sequences * queries * heads.num_heads * heads.value_dim * item
        softmax = scores * WIDE * (1 if ledger.is_wide else 2)
        mask = queries * keys if block.causal else 0
        with ledger.holding(grouped + mask):
            ledger.touch(2 * mask)
            ledger.touch(copied + (by_group - grouped if copied else 0) + scores * item)
            ledger.touch((3 if heads.capped else 2) * scores * item)  # scores, scores / cap, tanh
            with ledger.holding(kept * scores * item):  # before and after the mask
                ledger.touch(queries * keys if kept > 1 else 0)  # what the mask forbids
                ledger.touch(softmax)
                ledger.touch(scores * (WIDE + item) if not ledger.is_wide else 0)
                ledger.touch(scores * item + copied_values + out)
                if heads.sinks:  # the largest score of each row, the sum, the sink and both together
                    ledger.touch(softmax + 4 * WIDE * sequences * heads.num_heads * queries)
        ledger.take(out)
        yield out


def rotated_pieces(position: Position, rows: int, dim: int) -> Iterator[Piece]:
    """The rotation of `rows` vectors of `dim` elements, and their copy if only a part is rotated."""
    if isinstance(position, NoPosition):
        return
    turned = (position.rotary_dim or dim) if isinstance(position, Rope) else dim
    is_halves = position.layout == "half"
    yield Piece("rotate_halves" if is_halves else "rotate_pairs", (rows * turned,))
    if turned != dim:
        yield Piece("write", (rows * dim,))


def attended_pieces(walked: Walk, units: int, dim: int) -> Iterator[Piece]:
    """The fused kernel's blocks, for `units` sequences and heads together."""
    for block in walked.blocks:
        if block.causal:
            yield Piece("causal", (units * block.count, block.queries, dim))
        else:
            yield Piece("masked", (units * block.count, block.queries, block.keys, dim))
