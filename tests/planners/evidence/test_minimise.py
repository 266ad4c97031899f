"""The simplex, spreads, and what a fit may see."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planners.evidence.deployments import serving_case
from planners.evidence.fit_serving import Bench, samples_of, unfit
from planners.evidence.fit_training import training_samples
from planners.evidence.minimise import minimise
from planners.evidence.rows import published_rows
from planners.evidence.spread import errors_of, quantile
from planners.timing.efficiency import serving_efficiency


def test_the_simplex_finds_the_bottom_of_a_bent_valley() -> None:
    def rosenbrock(point: tuple[float, ...]) -> float:
        x, y = point
        return (1 - x) ** 2 + 100 * (y - x * x) ** 2

    minimum = minimise(rosenbrock, (-1.2, 1.0), rounds=2000)
    assert minimum == pytest.approx((1, 1), abs=1e-3)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.floats(0, 1))
def test_a_quantile_lies_between_the_extremes(values: list[float], share: float) -> None:
    ordered = sorted(values)
    assert ordered[0] - 1e-9 <= quantile(ordered, share) <= ordered[-1] + 1e-9


def test_errors_are_counted_by_row_and_by_source() -> None:
    spread = errors_of("x", [(-0.3, "a"), (0.1, "a"), (0.2, "b")])
    assert (spread.median, spread.num_rows, spread.num_sources) == (0.2, 3, 2)


@pytest.mark.parametrize("engine", ["vllm", "tensorrt-llm", "sglang"])
def test_no_serving_factor_is_fitted_on_a_test_row(engine: str) -> None:
    samples = samples_of(published_rows(), engine)
    assert samples
    assert all(sample.row.split == "calibrate" and unfit(sample.row) is None for sample in samples)
    tested = {(serving_case(row), row.metric, row.value) for row in published_rows() if row.split == "test"}
    assert not tested & {(sample.case, sample.metric, sample.row.value) for sample in samples}


def test_no_training_factor_is_fitted_on_a_test_row() -> None:
    samples = training_samples(published_rows())
    assert len(samples) > 50
    assert {sample.row.split for sample in samples} == {"calibrate"}


@pytest.mark.parametrize("engine", ["vllm", "tensorrt-llm", "sglang"])
def test_shipped_factors_are_at_a_minimum_of_the_fits_cost(engine: str) -> None:
    """Moving any factor by a fifth, either way, makes the robust error of the calibration rows no better than 2 %."""
    from planners.evidence import fit_serving as serving

    shipped = serving_efficiency(engine)
    assert shipped is not None
    bench = Bench(engine, samples_of(published_rows(), engine))

    def cost(**changes: float) -> float:
        moved = shipped.model_copy(update=changes)
        return sum(serving._cost_of(bench, sample, moved) for sample in bench.samples) / len(bench.samples)

    at = cost()
    for name in ("memory", "compute"):
        for factor in (0.8, 1.25):
            assert cost(**{name: getattr(shipped, name) * factor}) > at * 0.98
