"""Attention masks: which keys a query may attend to, the number of pairs, and the cache that it needs.

Positions count from 0. A query at position q sees the key at position k if and only if

- causal: k <= q
- chunked: k <= q and q // size == k // size (aligned blocks: Llama 4's local layers, not a sliding window)
- sliding_window: q - size < k <= q
- none: always (bidirectional; nothing is cached)
- grid_window: of an image's patches, where both lie in one square window of the grid (rows and columns from 0), that
  is q_row // size == k_row // size and q_column // size == k_column // size (bidirectional; nothing is cached)
"""

from collections.abc import Iterator
from math import isqrt
from typing import Annotated, Literal

from pydantic import Field

from l4spec.layers.base import Size, Spec
from l4spec.layers.declaration import Bound


class CausalMask(Spec):
    """Every earlier token and the token itself."""

    kind: Literal["causal"]


class ChunkedMask(Spec):
    """Earlier tokens of the same aligned block of `size` tokens."""

    kind: Literal["chunked"]
    size: Size
    """Tokens in a block; token `size` sees only itself."""


class SlidingWindowMask(Spec):
    """The last `size` tokens, the query's own included."""

    kind: Literal["sliding_window"]
    size: Size
    """Tokens in the window."""


class NoMask(Spec):
    """Bidirectional attention: every token sees every token."""

    kind: Literal["none"]


class GridWindowMask(Spec):
    """Patches of an image that lie in the same square window of its grid (Qwen2.5-VL); smaller at the far edges."""

    kind: Literal["grid_window"]
    size: Size
    """Patches along one side of a window."""


Mask = Annotated[CausalMask | ChunkedMask | SlidingWindowMask | NoMask | GridWindowMask, Field(discriminator="kind")]


def attended_pairs(mask: Mask, num_queries: int, num_cached: int = 0) -> int:
    """Number of (query, key) pairs that `num_queries` new tokens attend to after `num_cached` earlier ones, exactly.

    Windows of a grid are those of a square image of so many patches; ValueError where none has so many.
    """
    if isinstance(mask, NoMask):
        return num_queries * (num_cached + num_queries)
    if isinstance(mask, GridWindowMask):
        side = square_side(num_queries)
        return sum((rows * columns) ** 2 * number for rows, columns, number in grid_windows(side, side, mask.size))
    return _pairs_from_start(mask, num_cached + num_queries) - _pairs_from_start(mask, num_cached)


def _pairs_from_start(mask: CausalMask | ChunkedMask | SlidingWindowMask, length: int) -> int:
    if isinstance(mask, CausalMask):
        return _triangle(length)
    full, rest = divmod(length, mask.size)
    if isinstance(mask, ChunkedMask):
        return full * _triangle(mask.size) + _triangle(rest)
    return _triangle(length) if full == 0 else _triangle(mask.size) + (length - mask.size) * mask.size


def square_side(num_patches: int) -> int:
    """Patches along one side of a square image; ValueError where `num_patches` is no square number."""
    side = isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(f"windows of a grid are counted for square images, and {num_patches:,} patches are none")
    return side


def grid_windows(rows: int, columns: int, size: int) -> Iterator[tuple[int, int, int]]:
    """The windows of a grid that are alike: rows and columns of one in patches, and how many there are.

    In the order in which they are computed: whole ones, those of the right edge, those of the lower one, the corner.
    """
    for height, down in _pieces(rows, size):
        for width, across in _pieces(columns, size):
            yield height, width, down * across


def _pieces(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Whole windows along a side, and the rest: patches of one and how many of them."""
    full, rest = divmod(length, size)
    if full:
        yield size, full
    if rest:
        yield rest, 1


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def cache_bound(mask: Mask) -> Bound | None:
    """Growth of the cache of a layer with this mask; None if nothing is cached."""
    if isinstance(mask, ChunkedMask):
        return Bound("chunk", mask.size)
    if isinstance(mask, SlidingWindowMask):
        return Bound("window", mask.size)
    return Bound("full") if isinstance(mask, CausalMask) else None


def seen_before(mask: Mask, position: int) -> int:
    """Earlier tokens that the token at `position` attends to, if a chunk begins at `position`."""
    reach = cache_bound(mask)
    return position if reach is None else reach.seen_before(position)
