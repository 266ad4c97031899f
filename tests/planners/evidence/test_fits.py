"""Robust least squares, spreads, and what a fit may see."""

from collections.abc import Mapping
from dataclasses import replace
from math import log, sqrt
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planners.evidence.deployments import serving_case
from planners.evidence.fit_serving import Bench, residuals_of, samples_of, unfit
from planners.evidence.fit_training import training_samples
from planners.evidence.least_squares import fit_terms
from planners.evidence.rows import published_rows
from planners.evidence.spread import errors_of, percentile
from planners.evidence.terms import SERVING, TRAINING, Term
from planners.timing.efficiency import serving_efficiency

SLOPE = Term("slope", "factor", 1.0, 1.0, "of a line", "made up")
UNUSED = Term("unused", "seconds", 5e-6, 0.5, "of nothing", "made up")


def residuals(values: Mapping[str, float], outlier: float = 0.0) -> list[float]:
    """Twenty rows of a line with slope 3 and 1 % noise, measured to 0.1 %, and one that may be wrong."""
    rows = [log(values["slope"] / (3 * (1 + 0.001 * (-1) ** i))) / 0.01 for i in range(20)]
    return [*rows, (log(values["slope"] / 3) + outlier) / 0.01]


def test_a_fit_returns_the_factor_that_made_the_rows_and_how_sure_it_is() -> None:
    fitted = fit_terms((SLOPE, UNUSED), residuals)
    assert fitted.values["slope"] == pytest.approx(3, rel=1e-3)
    assert fitted.standard_errors["slope"] == pytest.approx(0.01 / sqrt(21), rel=0.02)


def test_a_factor_that_no_row_depends_on_stays_where_it_was_expected_and_is_called_undetermined() -> None:
    fitted = fit_terms((SLOPE, UNUSED), residuals)
    assert fitted.undetermined == ("unused",)
    assert fitted.values["unused"] == pytest.approx(UNUSED.expected)
    assert fitted.standard_errors["unused"] == pytest.approx(UNUSED.spread)


def test_one_row_that_is_wrong_by_half_moves_a_factor_by_less_than_a_percent() -> None:
    fitted = fit_terms((SLOPE, UNUSED), lambda values: residuals(values, outlier=0.5))
    assert fitted.values["slope"] == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("at", [0.5, 2.0])
def test_no_factor_exceeds_what_was_ever_measured(at: float) -> None:
    fitted = fit_terms((replace(SLOPE, most=2.0),), residuals, {"slope": at})
    assert fitted.values["slope"] == pytest.approx(2.0, rel=1e-3)
    assert fitted.values["slope"] <= 2.0


def test_every_factor_says_what_it_is_where_it_is_expected_and_why() -> None:
    for term in (*SERVING, *TRAINING):
        assert all((term.meaning, term.source))
        assert 0 < term.expected <= term.most
        assert term.spread > 0


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(1, 99))
def test_a_percentile_lies_between_the_extremes(values: list[float], percent: int) -> None:
    assert min(values) - 1e-9 <= percentile(values, percent) <= max(values) + 1e-9
    assert percentile(values, 50) == pytest.approx(median(values))


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
    shipped = serving_efficiency(engine)
    assert shipped is not None
    bench = Bench(engine, samples_of(published_rows(), engine))

    def cost(**changes: float) -> float:
        moved = shipped.model_copy(update=changes)
        return sum(sqrt(1 + residual**2) - 1 for residual in residuals_of(bench, moved))

    at = cost()
    for name in ("memory", "compute"):
        for factor in (0.8, 1.25):
            assert cost(**{name: getattr(shipped, name) * factor}) > at * 0.98
