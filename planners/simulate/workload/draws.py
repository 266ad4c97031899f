"""Random numbers of a simulation: one stream a purpose, so that changing one thing leaves the others as they are.

Two scenarios with the same seed get the same arrivals and lengths whatever serves them (common random numbers), so
their difference is that of the servers.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from math import ceil, expm1, inf, log, sqrt
from pathlib import Path
from random import Random
from statistics import NormalDist, fmean

from l4spec.errors import Place, Problem, UserError
from l4spec.spec.files import require_regular
from l4spec.spec.scenario.workload import (
    Bursts,
    Constant,
    ConstantLength,
    ExponentialLength,
    Gamma,
    Length,
    LognormalLength,
    Poisson,
    UniformLength,
)

NS = 1_000_000_000
FindFile = Callable[[str], Path]


def stream(seed: int, purpose: str) -> Random:
    """The random numbers of one purpose."""
    return Random(f"{seed}/{purpose}")


def gaps(arrivals: Poisson | Gamma | Constant | Bursts, random: Random) -> Iterator[int]:
    """Nanoseconds between arrivals, the first from time 0, without end."""
    if isinstance(arrivals, Bursts):
        yield from _bursts(arrivals, random)
    while isinstance(arrivals, Poisson):
        yield round(random.expovariate(arrivals.rate) * NS)
    while isinstance(arrivals, Constant):
        yield round(NS / arrivals.rate)
    while isinstance(arrivals, Gamma):
        shape = 1 / arrivals.cv**2
        yield round(random.gammavariate(shape, 1 / (shape * arrivals.rate)) * NS)


def _bursts(arrivals: Bursts, random: Random) -> Iterator[int]:
    """Poisson arrivals of a rate that changes with time: unit exponential gaps, stretched by the rate of their time."""
    rates, period = arrivals.rates, arrivals.period
    now = before = 0.0
    while True:
        left = random.expovariate(1.0)
        while True:
            index = int(now // period)
            rate, end = rates[index % len(rates)], (index + 1) * period
            if left <= (end - now) * rate:
                now += left / rate
                break
            left -= (end - now) * rate
            now = end
        yield round(now * NS) - round(before * NS)
        before = now


def lengths(length: Length, random: Random, find: FindFile) -> Iterator[int]:
    """Numbers of tokens, each at least 1, without end."""
    if isinstance(length, int):
        length = ConstantLength(kind="constant", tokens=length)
    while isinstance(length, ConstantLength):
        yield length.tokens
    while isinstance(length, UniformLength):
        yield random.randint(length.low, length.high)
    while isinstance(length, ExponentialLength):
        yield _cut(ceil(random.expovariate(1 / length.mean)), length.most)
    if isinstance(length, LognormalLength):
        sigma = sqrt(log(1 + length.cv**2))
        mu = log(length.mean) - sigma**2 / 2
        while True:
            yield _cut(round(random.lognormvariate(mu, sigma)), length.most)
    values = _from_file(find(length.path))
    while True:
        yield random.choice(values)


def mean_length(length: Length, find: FindFile) -> float:
    """Mean of the lengths drawn from `lengths`, except for rounding to whole tokens."""
    if isinstance(length, int):
        return length
    if isinstance(length, ConstantLength):
        return length.tokens
    if isinstance(length, UniformLength):
        return (length.low + length.high) / 2
    if isinstance(length, ExponentialLength):
        most = inf if length.most is None else length.most
        return length.mean * -expm1(-most / length.mean)
    if isinstance(length, LognormalLength):
        return _mean_of_lognormal(length)
    return fmean(_from_file(find(length.path)))


def _mean_of_lognormal(length: LognormalLength) -> float:
    """E[min(X, most)] of a log-normal X."""
    if length.most is None:
        return length.mean
    sigma = sqrt(log(1 + length.cv**2))
    above = (log(length.most / length.mean) + sigma**2 / 2) / sigma
    normal = NormalDist()
    return length.mean * normal.cdf(above - sigma) + length.most * normal.cdf(-above)


def _cut(value: int, most: int | None) -> int:
    return max(1, value if most is None else min(value, most))


def _from_file(path: Path) -> list[int]:
    values: list[int] = []
    require_regular(path)
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            if not text.isdecimal() or not 1 <= int(text) <= 1 << 40:
                message = f"expected a number of tokens of at least 1, found {text[:40]!r}"
                raise UserError([Problem(message, place=Place(str(path), number))])
            values.append(int(text))
    if not values:
        raise UserError([Problem("expected one number a line, found none", place=Place(str(path)))])
    return values


def popularity(groups: int, zipf: float, random: Random) -> Iterator[int]:
    """Numbers from 0 to `groups` - 1, the k-th as often as 1 / (k + 1)^zipf, without end."""
    if groups == 1 or zipf == 0:
        while True:
            yield random.randrange(groups)
    bounds = list(accumulate(1 / (k + 1) ** zipf for k in range(groups)))
    while True:
        yield min(bisect_left(bounds, random.random() * bounds[-1]), groups - 1)
