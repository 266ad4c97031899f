"""Dense blocks of queries and keys that our attention computes, including masked pairs, as a FLOP counter counts.

`l4spec.layers.attention.compute` walks a mask without computing most of what it forbids: whole chunks are folded into
the batch, windows and queries after a past go in bands of BLOCK queries. Here is the same walk in numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from l4spec.layers.attention.masks import (
    ChunkedMask,
    GridWindowMask,
    Mask,
    NoMask,
    SlidingWindowMask,
    grid_windows,
    square_side,
)

BLOCK = 512
"""Queries that share one explicit mask: bounds the memory of masks at BLOCK * keys."""


@dataclass(frozen=True, slots=True)
class Block:
    """`count` dense products of `queries` with `keys`; with `causal` the kernel masks later keys itself.

    A `masked` block has an explicit mask, which blocks of the same `mask_name` share, and which is `windowed` where it
    forbids the keys before a window too; a `whole` one is of whole chunks that became a batch.
    """

    count: int
    queries: int
    keys: int
    causal: bool = False
    masked: bool = False
    mask_name: str = ""
    windowed: bool = False
    whole: bool = False


class Walk(NamedTuple):
    """Attention work of one sequence: its blocks, and the number of tokens whose keys and values are computed.

    `folded`: whole chunks became a batch. `joined`: cached and new rows became one tensor. `cut`: each block's queries,
    keys and values are copies, cut out of a grid.
    """

    blocks: tuple[Block, ...]
    num_expanded: int
    folded: bool = False
    joined: bool = False
    cut: bool = False

    def pairs(self, *, capped: bool = False) -> int:
        """(query, key) pairs that are computed.

        Soft-capped attention, which no fused kernel runs, cuts causal blocks into bands of BLOCK queries.
        """
        return sum(
            block.count * (_band_pairs(block) if capped and block.causal else block.queries * block.keys)
            for block in self.blocks
        )


def walk(mask: Mask, num_queries: int, num_cached: int = 0) -> Walk:
    """Blocks of attention from `num_queries` new tokens of one sequence after `num_cached` earlier ones."""
    if isinstance(mask, NoMask):
        return Walk((Block(1, num_queries, num_cached + num_queries),), num_cached + num_queries)
    if isinstance(mask, GridWindowMask):
        return _windows(num_queries, mask.size)
    if isinstance(mask, ChunkedMask):
        return _chunks(num_queries, num_cached % mask.size, mask.size)
    if isinstance(mask, SlidingWindowMask) and num_cached + num_queries > mask.size:
        if num_queries == 1:
            return Walk((Block(1, 1, mask.size),), mask.size)
        num_keys = min(num_cached, mask.size - 1) + num_queries
        return Walk(tuple(_bands(num_queries, num_keys, mask.size)), num_keys, joined=True)
    return _after_past(num_queries, num_cached)


def _after_past(num_queries: int, num_cached: int) -> Walk:
    """Causal queries that are the last of all tokens."""
    num_keys = num_cached + num_queries
    if num_queries == 1 or not num_cached:
        return Walk((Block(1, num_queries, num_keys, causal=not num_cached),), num_keys)
    return Walk(tuple(_bands(num_queries, num_keys, None)), num_keys)


def _chunks(num_queries: int, slot: int, size: int) -> Walk:
    """The rest of the chunk whose first `slot` tokens are cached, whole chunks, and the last partial one."""
    here = min(num_queries, size - slot) if slot else 0
    first = _after_past(here, slot) if here else Walk((), 0)
    num_chunks, num_left = divmod(num_queries - here, size)
    whole = (Block(num_chunks, size, size, causal=True, whole=True),) if num_chunks else ()
    left = (Block(1, num_left, num_left, causal=True),) if num_left else ()
    return Walk((*first.blocks, *whole, *left), first.num_expanded + num_queries - here, folded=num_chunks > 0)


def _windows(num_queries: int, size: int) -> Walk:
    """Windows of a square image: those that are alike are cut out of it to become a batch."""
    side = square_side(num_queries)
    alike = list(grid_windows(side, side, size))
    if len(alike) == 1 and alike[0][2] == 1:
        return Walk((Block(1, num_queries, num_queries),), num_queries)
    blocks = (Block(number, rows * columns, rows * columns, whole=True) for rows, columns, number in alike)
    return Walk(tuple(blocks), num_queries, cut=True)


def _bands(num_queries: int, num_keys: int, window: int | None) -> Iterator[Block]:
    """Bands of BLOCK queries, each with the keys that any of them sees; queries are the last of all tokens."""
    offset = num_keys - num_queries
    for first in range(0, num_queries, BLOCK):
        last = min(first + BLOCK, num_queries)
        low = 0 if window is None else max(0, offset + first + 1 - window)
        name = f"{offset + first - low} {last - first} {offset + last - low} {window}"
        yield Block(1, last - first, offset + last - low, masked=True, mask_name=name, windowed=window is not None)


def _band_pairs(block: Block) -> int:
    """Pairs of a causal block in bands of BLOCK queries, each with all keys up to its last query."""
    full, rest = divmod(block.queries, BLOCK)
    return BLOCK * BLOCK * full * (full + 1) // 2 + rest * block.queries
