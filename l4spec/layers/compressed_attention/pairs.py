"""Numbers of attended (query, key) pairs, and the dense blocks that our module computes for them."""

from collections.abc import Iterator
from dataclasses import dataclass

from l4spec.layers.attention.masks import SlidingWindowMask, attended_pairs
from l4spec.layers.attention.walk import BLOCK


@dataclass(frozen=True, slots=True)
class Band:
    """Queries `first` to `last` of a pass, with rows `low` to `high` of the window and the first `entries` entries."""

    first: int
    last: int
    low: int
    high: int
    entries: int

    @property
    def pairs(self) -> int:
        """(query, key) pairs that are computed, masked ones included."""
        return (self.last - self.first) * (self.high - self.low + self.entries)

    @property
    def scored(self) -> int:
        """(query, entry) pairs that an index scores."""
        return (self.last - self.first) * self.entries


def bands(num_queries: int, num_cached: int, window: int, ratio: int | None) -> Iterator[Band]:
    """Bands of BLOCK queries, each with the rows that any of them sees and the entries finished by its last.

    Rows are those of the last window - 1 tokens before the pass, then its own.
    """
    num_old = min(num_cached, window - 1)
    for first in range(0, num_queries, BLOCK):
        last = min(first + BLOCK, num_queries)
        low = max(0, num_old + first + 1 - window)
        yield Band(first, last, low, num_old + last, (num_cached + last) // ratio if ratio else 0)


def window_pairs(num_queries: int, num_cached: int, window: int) -> int:
    """(query, key) pairs inside of windows, exactly."""
    return attended_pairs(SlidingWindowMask(kind="sliding_window", size=window), num_queries, num_cached)


def entry_pairs(num_queries: int, num_cached: int, ratio: int, most: int | None = None) -> int:
    """(query, entry) pairs: the query at position p sees (p + 1) // ratio finished entries, at most `most`."""
    return _entries_up_to(num_cached + num_queries, ratio, most) - _entries_up_to(num_cached, ratio, most)


def _entries_up_to(length: int, ratio: int, most: int | None) -> int:
    """Entries that the first `length` tokens see together."""
    if most is not None and length >= most * ratio:
        return _entries_up_to(most * ratio - 1, ratio, None) + (length - most * ratio + 1) * most
    finished = length // ratio
    return ratio * finished * (finished - 1) // 2 + finished * (length - finished * ratio + 1)
