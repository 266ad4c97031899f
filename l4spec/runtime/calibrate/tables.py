"""Cases on a grid of sizes, and the table of seconds that they give."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from l4spec.runtime.calibrate.buffers import Buffers
from l4spec.runtime.calibrate.sizes import Grid
from l4spec.runtime.calibrate.timing import Case

DIGITS = 4
"""Significant digits of a time: more are noise."""


class RawTable(TypedDict, total=False):
    """`seconds` at every point of the grid, the last axis fastest; `cold` when nothing of it was in the caches."""

    axes: list[list[int]]
    seconds: list[float]
    cold: list[float]
    squares: list[int]


@dataclass(frozen=True, slots=True)
class Timed:
    """A call and the tensors that it reads."""

    run: Callable[[], object]
    inputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class TableCases:
    """The cases of one table in the order of its grid."""

    axes: Grid
    hot: Sequence[Case]
    cold: Sequence[Case] = ()
    squares: tuple[int, ...] = ()

    @classmethod
    def both(cls, buffers: Buffers, axes: Grid, calls: Sequence[Timed]) -> "TableCases":
        """Every call as it is, and after weights have streamed through the caches."""
        hot = [Case(call.run) for call in calls]
        return cls(axes, hot, [Case(call.run, buffers.after_weights(*call.inputs)) for call in calls])

    def __iter__(self) -> Iterator[Case]:
        """Every case once."""
        return iter({id(case): case for case in (*self.hot, *self.cold)}.values())

    def table(self) -> RawTable:
        """The table of measured medians."""
        raw_table: RawTable = {
            "axes": [list(axis) for axis in self.axes],
            "seconds": [median_of(case) for case in self.hot],
        }
        if self.cold:
            raw_table["cold"] = [median_of(case) for case in self.cold]
        if self.squares:
            raw_table["squares"] = list(self.squares)
        return raw_table


def median_of(case: Case) -> float:
    """Its median seconds, without digits that are noise."""
    return float(f"{case.median:.{DIGITS}g}")
