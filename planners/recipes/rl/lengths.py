"""Lengths of answers: log-normal, cut at the longest that is allowed, with a given mean of what remains."""

import math
import random
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import NormalDist

from l4spec.errors import UserError

_NORMAL = NormalDist()
_GRID = 2048
_HALVINGS = 60


@dataclass(frozen=True)
class AnswerLengths:
    """`mean` is that of the cut lengths; `spread` is the standard deviation of the logarithm before the cut."""

    mean: float
    longest: int
    spread: float

    def __post_init__(self) -> None:
        if not 1 <= self.mean <= self.longest:
            hint = f"a mean from 1 to {self.longest:,}"
            raise UserError(f"answers of {self.mean:,.0f} tokens in the mean, {self.longest:,} at most", hint=hint)

    @cached_property
    def scale(self) -> float:
        """Median before the cut, such that the mean after it is `mean`; halved intervals of its logarithm."""
        low, high = math.log(self.mean) - 4 * self.spread - 4, math.log(self.longest) + 4 * self.spread + 4
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._cut_mean(math.exp(middle)) < self.mean else (low, middle)
        return math.exp((low + high) / 2)

    def _cut_mean(self, scale: float) -> float:
        """E min(X, longest) of a log-normal X, in closed form."""
        if self.spread == 0:
            return min(scale, self.longest)
        z = (math.log(self.longest) - math.log(scale)) / self.spread
        below = scale * math.exp(self.spread**2 / 2) * _NORMAL.cdf(z - self.spread)
        return below + self.longest * (1 - _NORMAL.cdf(z))

    def quantile(self, share: float) -> int:
        """The length that this share of answers does not exceed; at least 1."""
        value = self.scale * math.exp(self.spread * _NORMAL.inv_cdf(share))
        return max(1, min(self.longest, round(value)))

    def draw(self, count: int, seed: int) -> list[int]:
        """`count` lengths, one from each of as many equally likely intervals, shuffled."""
        return list(_drawn(self, count, seed))

    def tokens(self, count: int) -> int:
        """The sum of `count` drawn lengths, whatever the seed."""
        return sum(_spread_evenly(self, count))

    def longest_of(self, count: int) -> int:
        """The longest of `count` drawn lengths, whatever the seed."""
        return max(_spread_evenly(self, count))

    @cached_property
    def mean_tokens_before(self) -> float:
        """Tokens of its own answer that a token has before it, in the mean over tokens: E L^2 / 2 E L."""
        lengths = _spread_evenly(self, _GRID)
        return sum(length**2 for length in lengths) / (2 * sum(lengths))


@lru_cache(maxsize=128)  # setups of a phase draw the same lengths
def _drawn(lengths: AnswerLengths, count: int, seed: int) -> tuple[int, ...]:
    shuffled = list(_spread_evenly(lengths, count))
    random.Random(seed).shuffle(shuffled)
    return tuple(shuffled)


@lru_cache(maxsize=64)
def _spread_evenly(lengths: AnswerLengths, count: int) -> tuple[int, ...]:
    """The middle of each of `count` equally likely intervals."""
    return tuple(lengths.quantile((index + 0.5) / count) for index in range(count))
