"""How far predictions are from what was published: medians and tails of relative errors."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Absolute relative errors of a metric over rows of some sources."""

    metric: str
    median: float
    p90: float
    num_rows: int
    num_sources: int


def errors_of(metric: str, errors: Sequence[tuple[float, object]]) -> Spread:
    """The spread of (relative error, source) pairs."""
    sizes = sorted(abs(error) for error, _ in errors)
    return Spread(metric, quantile(sizes, 0.5), quantile(sizes, 0.9), len(sizes), len({source for _, source in errors}))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The linearly interpolated quantile of an ordered, non-empty sequence."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
