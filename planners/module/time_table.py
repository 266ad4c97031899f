"""Interpolation on a measured grid by powers of the sizes, which times are piecewise."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import exp, log

from planners.catalog.cpu_profile import Residency, SizeGrid


def seconds_at(grid: SizeGrid, sizes: Sequence[float], cold: float = 0.0) -> float:
    """Seconds at these sizes, one per axis; `cold` is the share of the read bytes that comes from memory.

    Linear between neighbours in the logarithms of sizes and seconds. Above the grid the last two points continue, at
    most in proportion to the size (an axis of `squares`: to its square); below it the first point stands: there a piece
    is its overhead.
    """
    hot = exp(_at(grid, sizes, _logs(grid.seconds)))
    if not grid.cold or not cold:
        return hot
    return hot + cold * max(0.0, exp(_at(grid, sizes, _logs(grid.cold))) - hot)


def _at(grid: SizeGrid, sizes: Sequence[float], logs: Sequence[float]) -> float:
    inside = [min(float(size), axis[-1]) for size, axis in zip(sizes, grid.axes, strict=True)]
    corners = [_between(axis, size) for axis, size in zip(grid.axes, inside, strict=True)]
    seconds = last = _blend(grid, corners, logs)
    for number, (axis, size) in enumerate(zip(grid.axes, sizes, strict=True)):
        if size > axis[-1] and len(axis) > 1:
            before = _blend(grid, [*corners[:number], ((len(axis) - 2, 1.0),), *corners[number + 1 :]], logs)
            slope = (last - before) / log(axis[-1] / axis[-2])
            most = 2.0 if number in grid.squares else 1.0
            seconds += min(max(slope, 0.0), most) * log(size / axis[-1])
    return seconds


def _blend(grid: SizeGrid, corners: Sequence[tuple[tuple[int, float], ...]], logs: Sequence[float]) -> float:
    strides = _strides(tuple(len(axis) for axis in grid.axes))
    total = 0.0
    for corner in product(*corners):
        weight, place = 1.0, 0
        for (index, share), stride in zip(corner, strides, strict=True):
            weight *= share
            place += index * stride
        total += weight * logs[place]
    return total


@lru_cache(maxsize=64)
def _strides(lengths: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for length in reversed(lengths[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))


@lru_cache(maxsize=256)
def _logs(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(log(value) for value in values)


def _between(axis: tuple[int, ...], size: float) -> tuple[tuple[int, float], ...]:
    """The points beside `size` with their weights."""
    if len(axis) == 1 or size <= axis[0]:
        return ((0, 1.0),)
    right = min(bisect_right(axis, size), len(axis) - 1)
    left = right - 1
    share = (log(size) - log(axis[left])) / (log(axis[right]) - log(axis[left]))
    return ((left, 1 - share), (right, share))


def share_from_memory(residency: Residency, num_bytes: float) -> float:
    """Share of the `num_bytes` read in every pass that comes from memory; linear in bytes between the points."""
    sizes, shares = residency.bytes, residency.share
    if num_bytes <= sizes[0]:
        return shares[0]
    if num_bytes >= sizes[-1]:
        return shares[-1]
    right = bisect_right(sizes, num_bytes)
    part = (num_bytes - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
    return shares[right - 1] + part * (shares[right] - shares[right - 1])
