"""The error that a plan prints is that of rows like it, and it is met about as often as it says."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec.report.latency import error_words
from planners.catalog.loader import load
from planners.evidence.coverage import coverages
from planners.evidence.replay import replay
from planners.evidence.rows import published_rows
from planners.latency_types import Conditions, JudgedRow
from planners.plan import plan
from planners.timing.efficiency import ServingEfficiency
from planners.timing.likeness import LEAST_ROWS, LEAST_SERIES, error_like, upper

ROWS = st.lists(
    st.builds(
        JudgedRow,
        st.sampled_from(["tpot", "ttft"]),
        st.floats(-0.9, 3),
        st.integers(0, 6),
        st.booleans(),
        st.sampled_from([4, 8, 16]),
        st.sampled_from([256.0, 2048.0, 131072.0]),
        st.sampled_from([1.0, 8.0, 64.0]),
        st.sampled_from([0.5, 8.0, 64.0]),
    ),
    max_size=60,
)
CASES = st.builds(
    Conditions, st.booleans(), st.sampled_from([4, 8, 16]), st.sampled_from([256.0, 4096.0]), st.just(8.0)
)


@given(ROWS, CASES)
def test_rows_agree_in_everything_that_is_named_and_are_enough(rows: list[JudgedRow], case: Conditions) -> None:
    error = error_like(rows, "tpot", case)
    ours = [row for row in rows if row.metric == "tpot"]
    if error is None:
        assert not ours
        return
    assert set(error.alike) | set(error.unlike) == {"experts", "number format", "length", "GPUs", "load"}
    alike = [row for row in ours if "experts" not in error.alike or row.routed == case.routed]
    alike = [row for row in alike if "number format" not in error.alike or row.bits == case.bits]
    assert error.num_rows <= len(alike)
    if error.num_rows < len(ours):
        assert error.num_rows >= LEAST_ROWS
        assert error.num_sources >= LEAST_SERIES
        assert "experts" in error.alike
    assert error.median <= error.p90


@given(ROWS, CASES)
def test_rows_of_another_metric_change_nothing(rows: list[JudgedRow], case: Conditions) -> None:
    assert error_like(rows, "tpot", case) == error_like([r for r in rows if r.metric == "tpot"], "tpot", case)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=80))
def test_the_upper_error_leaves_at_most_a_tenth_of_further_ones_above(sizes: list[float]) -> None:
    below = sum(size <= upper(sizes) for size in sizes)
    assert below >= min(len(sizes), ceil(0.9 * (len(sizes) + 1)))


def test_printed_errors_are_met_about_as_often_as_they_say() -> None:
    """On all rows left out and all test rows; a share of 0.9 of n scatters by sqrt(0.09 / n), series err together."""
    rows_met = coverages(replay(published_rows()))
    assert {row.factors for row in rows_met} == {"vllm", "tensorrt-llm", "sglang", "training"}
    serving = [row for row in rows_met if row.factors != "training"]
    rows = sum(row.num_rows for row in serving)
    assert rows > 250
    assert sum(row.num_rows * row.within_upper for row in serving) / rows >= 0.88
    tested = [row for row in rows_met if row.split == "test"]
    assert sum(row.num_rows * row.within_upper for row in tested) / sum(row.num_rows for row in tested) >= 0.88


def test_a_routed_model_on_an_engine_without_a_routed_row_is_unlike_all_of_them() -> None:
    latency = plan("scout", gpus="8xH100", engine="vllm").latency
    assert latency is not None
    for error in latency.errors:
        assert error.alike == ()
        assert "of other kinds" in error_words(error)
        stated = load("efficiency", ServingEfficiency, "vllm").error(error.metric)
        assert stated is not None
        assert error.p90 >= stated.p90


@pytest.mark.parametrize("scheme", ["bf16", "fp8"])
def test_a_dense_model_is_judged_by_rows_of_its_number_format(scheme: str) -> None:
    latency = plan("compare/llama-3.1-70b", gpus="8xH100", engine="tensorrt-llm", quantization=scheme).latency
    assert latency is not None
    for error in latency.errors:
        assert "experts" in error.alike
        assert "of" in error_words(error)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=19))
def test_of_fewer_than_twenty_rows_the_upper_error_is_the_largest(sizes: list[float]) -> None:
    assert upper(sizes) == max(sizes)
