"""Repeated layers folded into patterns with their number of repeats, for every picture and listing of layers."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

LONGEST_PERIOD = 64
"""The longest pattern that is looked for; published models repeat after 1 to 12 layers."""


@dataclass(frozen=True, slots=True)
class Fold:
    """`repeats` times the `period` items that begin at `start`."""

    start: int
    period: int
    repeats: int

    @property
    def stop(self) -> int:
        """The index that follows the last item."""
        return self.start + self.period * self.repeats

    def copies(self, offset: int) -> range:
        """Indices of all items at `offset` in their period."""
        return range(self.start + offset, self.stop, self.period)


@dataclass(frozen=True, slots=True)
class Run:
    """Equal neighbors within a period: places `offset` to `offset + length - 1` of it."""

    offset: int
    length: int


def fold(items: Sequence[Hashable]) -> tuple[Fold, ...]:
    """The items as folds, first to last: of all patterns that repeat from an item on, the one that reaches farthest.

    Of two that reach equally far the shorter one is taken. An item that nothing repeats is a fold of its own.
    `LLLG` 12 times is one fold of period 4; `DDD` followed by `M` 58 times is two of period 1. O(64 n).
    """
    folds: list[Fold] = []
    start = 0
    while start < len(items):
        folds.append(_farthest(items, start))
        start = folds[-1].stop
    return tuple(folds)


def _farthest(items: Sequence[Hashable], start: int) -> Fold:
    best = Fold(start, 1, 1)
    for period in range(1, min(LONGEST_PERIOD, (len(items) - start) // 2) + 1):
        stop = start + period
        while stop < len(items) and items[stop] == items[stop - period]:
            stop += 1
        candidate = Fold(start, period, (stop - start) // period)
        if candidate.repeats > 1 and candidate.stop > best.stop:
            best = candidate
    return best


def runs(items: Sequence[Hashable], one: Fold) -> Iterator[Run]:
    """Equal neighbors within one period of a fold, in order: `LLLG` has `LLL` and `G`."""
    offset = 0
    for _, members in groupby(items[one.start : one.start + one.period]):
        length = len(list(members))
        yield Run(offset, length)
        offset += length


__all__ = ["Fold", "Run", "fold", "runs"]
