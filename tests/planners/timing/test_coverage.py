"""How many experts a batch reaches."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planners.timing.expert_coverage import coverage_of_histogram, expected_coverage

EXPERTS = st.integers(1, 256)


def test_one_token_of_a_top_1_model_reads_one_expert() -> None:
    assert expected_coverage(16, 1, 1) == pytest.approx(1, rel=1e-12)


def test_a_batch_of_16_over_scouts_16_experts_reads_two_thirds_of_them() -> None:
    assert expected_coverage(16, 1, 16) == pytest.approx(16 * (1 - (15 / 16) ** 16), rel=1e-12)


@given(experts=EXPERTS, tokens=st.integers(0, 5000), data=st.data())
def test_coverage_grows_with_tokens_and_never_exceeds_what_is_there(
    experts: int, tokens: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(1, experts))
    covered = expected_coverage(experts, chosen, tokens)
    assert covered <= expected_coverage(experts, chosen, tokens + 1) * (1 + 1e-12)
    assert 0 <= covered <= min(experts, chosen * tokens) * (1 + 1e-9)


@given(experts=st.integers(2, 64), tokens=st.integers(1, 200))
def test_a_flat_histogram_is_uniform_routing(experts: int, tokens: int) -> None:
    assert coverage_of_histogram([3.0] * experts, 1, tokens) == pytest.approx(expected_coverage(experts, 1, tokens))


def test_a_skewed_histogram_reaches_fewer_experts() -> None:
    assert coverage_of_histogram([97.0, 1, 1, 1], 1, 20) < expected_coverage(4, 1, 20)


def test_the_formula_agrees_with_drawing_experts() -> None:
    draw = random.Random(7)
    runs = [len({e for _ in range(12) for e in draw.sample(range(32), 4)}) for _ in range(4000)]
    mean = sum(runs) / len(runs)
    assert mean == pytest.approx(expected_coverage(32, 4, 12), abs=4 * 2.5 / len(runs) ** 0.5)  # 4 standard errors
