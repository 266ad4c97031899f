"""Finding the shortest way to write a sequence of layers down: blocks in a row, and patterns that repeat."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
LONGEST_PERIOD = 64
"""Longest pattern looked for; published models repeat after at most 8 layers."""


@dataclass(frozen=True, slots=True)
class PatternRun(Generic[T]):
    """`item`, `count` times in a row."""

    item: T
    count: int


@dataclass(frozen=True, slots=True)
class Pattern(Generic[T]):
    """`runs`, laid `count` times."""

    runs: tuple[PatternRun[T], ...]
    count: int


def compact(items: Sequence[T]) -> tuple[Pattern[T], ...]:
    """`items` as repeated patterns, each the one that covers most of the remaining items, the shortest among equals.

    Laid out again by `laid_out` they give the same sequence.
    """
    patterns: list[Pattern[T]] = []
    start = 0
    while start < len(items):
        period, count = _best_period(items, start)
        patterns.append(Pattern(runs(items[start : start + period]), count))
        start += period * count
    return tuple(patterns)


def runs(items: Sequence[T]) -> tuple[PatternRun[T], ...]:
    """Run-length encoding."""
    all_runs: list[PatternRun[T]] = []
    for item in items:
        if all_runs and all_runs[-1].item == item:
            all_runs[-1] = PatternRun(item, all_runs[-1].count + 1)
        else:
            all_runs.append(PatternRun(item, 1))
    return tuple(all_runs)


def laid_out(patterns: Sequence[Pattern[T]]) -> list[T]:
    """The sequence of the patterns, expanded."""
    return [
        run.item for pattern in patterns for _ in range(pattern.count) for run in pattern.runs for _ in range(run.count)
    ]


def _best_period(items: Sequence[T], start: int) -> tuple[int, int]:
    left = len(items) - start
    options = [(1, _repeats(items, start, 1))]
    for period in range(2, min(left // 2, LONGEST_PERIOD) + 1):
        count = _repeats(items, start, period)
        if count > 1:
            options.append((period, count))
    return max(options, key=lambda option: (option[0] * option[1], -option[0]))


def _repeats(items: Sequence[T], start: int, period: int) -> int:
    """Number of consecutive repetitions of items[start : start + period], the first included."""
    same = 0
    while start + period + same < len(items) and items[start + same] == items[start + period + same]:
        same += 1
    return 1 + same // period
