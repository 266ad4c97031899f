"""Attention masks: which keys a query may attend to, the number of pairs, and the cache that it needs.

Positions count from 0. A query at position q sees the key at position k if and only if

- causal: k <= q
- chunked: k <= q and q // size == k // size (aligned blocks: Llama 4's local layers, not a sliding window)
- sliding_window: q - size < k <= q
- none: always (bidirectional; nothing is cached)
"""

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


Mask = Annotated[CausalMask | ChunkedMask | SlidingWindowMask | NoMask, Field(discriminator="kind")]


def attended_pairs(mask: Mask, num_queries: int, num_cached: int = 0) -> int:
    """Number of (query, key) pairs that `num_queries` new tokens attend to after `num_cached` earlier ones, exactly."""
    if isinstance(mask, NoMask):
        return num_queries * (num_cached + num_queries)
    return _pairs_from_start(mask, num_cached + num_queries) - _pairs_from_start(mask, num_cached)


def _pairs_from_start(mask: CausalMask | ChunkedMask | SlidingWindowMask, length: int) -> int:
    if isinstance(mask, CausalMask):
        return _triangle(length)
    full, rest = divmod(length, mask.size)
    if isinstance(mask, ChunkedMask):
        return full * _triangle(mask.size) + _triangle(rest)
    return _triangle(length) if full == 0 else _triangle(mask.size) + (length - mask.size) * mask.size


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def cache_bound(mask: Mask) -> Bound | None:
    """How the cache of a layer with this mask grows; None where nothing is cached."""
    if isinstance(mask, ChunkedMask):
        return Bound("chunk", mask.size)
    if isinstance(mask, SlidingWindowMask):
        return Bound("window", mask.size)
    return Bound("full") if isinstance(mask, CausalMask) else None


def seen_before(mask: Mask, position: int) -> int:
    """Earlier tokens that the token at `position` attends to, if a chunk begins at `position`."""
    reach = cache_bound(mask)
    return position if reach is None else reach.seen_before(position)
