"""Relative errors of predictions against published figures: medians and tails."""

from collections.abc import Sequence
from statistics import median, quantiles

from planners.latency_types import LatencyError


def errors_of(metric: str, errors: Sequence[tuple[float, object]]) -> LatencyError:
    """The absolute errors of (relative error, source) pairs."""
    sizes = [abs(error) for error, _ in errors]
    return LatencyError(
        metric=metric,
        median=median(sizes),
        p90=percentile(sizes, 90),
        num_rows=len(sizes),
        num_sources=len({source for _, source in errors}),
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` of a hundred do not exceed, linear between ranks; of one value, that value."""
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]
