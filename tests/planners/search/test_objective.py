"""The planned layout is the good one: the fastest by estimate, and among equals the one with the most free memory."""

from typing import Any

import pytest

from l4spec.errors import UserError
from l4spec.report.plan_page import layout_in_words
from planners.plan import plan
from planners.plan_types import LayoutRow, Objective, Plan
from planners.timing.efficiency import serving_efficiency
from tests.cpu_time import takes_at_most
from tests.planners.models import graph

BOTH: tuple[Objective, ...] = ("fastest", "simplest")
LATE: dict[str, Any] = {
    "gpus": "16xH200",
    "quantization": "fp8-block",
    "context": 9216,
    "batch": 256,
    "output_tokens": 1024,
}
"""DeepSeek-V3 as it was reported: the layout chosen by memory took five times as long as the best."""


def seconds(row: LayoutRow) -> float:
    return (row.ttft_seconds or 0.0) + 1023 * (row.time_per_output_token_seconds or 0.0)


def test_deepseek_v3_on_two_hosts_gets_a_layout_several_times_as_fast_as_by_memory() -> None:
    chosen = plan(graph("deepseek-v3"), **LATE)
    simple = plan(graph("deepseek-v3"), **LATE, objective="simplest")
    assert chosen.latency is not None
    assert simple.latency is not None
    assert (chosen.latency.time_per_output_token_seconds or 1) * 3 < (simple.latency.time_per_output_token_seconds or 0)
    assert (chosen.deployment.chosen_by, simple.deployment.chosen_by) == ("time", "memory")


@pytest.mark.parametrize("spec", ["scout", "maverick", "llama-3.1-70b", "deepseek-v3"])
def test_no_layout_is_faster_than_the_chosen_one_by_more_than_the_error_and_no_equal_one_has_more_room(
    spec: str,
) -> None:
    planned = plan(graph(spec), gpus="16xH200", context=9216, batch=64, output_tokens=1024)
    factors = serving_efficiency("ideal")
    error = factors.error("tpot") if factors is not None else None
    assert error is not None
    rows = {row.layout: row for row in planned.layouts if row.fits}
    chosen = rows[planned.layout]
    for row in rows.values():
        if row.layout.pp == 1:
            assert seconds(chosen) <= seconds(row) * (1 + error.median)
            if seconds(row) <= seconds(chosen):
                assert row.total_bytes >= chosen.total_bytes


def test_times_of_layouts_are_those_of_their_own_plans() -> None:
    planned = plan(graph("scout"), gpus="8xH100", context=9216, batch=16, output_tokens=1024)
    for row in planned.layouts:
        if row.fits:
            degrees = {axis: getattr(row.layout, axis) for axis in ("tp", "ep", "pp", "dp")}
            alone = plan(graph("scout"), gpus="8xH100", context=9216, batch=16, output_tokens=1024, **degrees)
            assert alone.latency is not None
            assert row.ttft_seconds == pytest.approx(alone.latency.ttft_seconds)
            assert row.time_per_output_token_seconds == pytest.approx(alone.latency.time_per_output_token_seconds)


def test_without_an_estimate_memory_decides_and_the_plan_says_so() -> None:
    planned = plan(graph("scout"), gpus="8xH100", engine="llama.cpp")
    assert planned.deployment.chosen_by == "memory"
    assert planned.layout == plan(graph("scout"), gpus="8xH100", objective="simplest").layout
    assert "the simplest since no time is estimated" in layout_in_words(planned)


@pytest.mark.parametrize("mode", ["serve", "train"])
def test_the_most_free_memory_is_the_most_of_all_layouts_that_fit(mode: str) -> None:
    planned = plan(graph("scout"), gpus="16xH200", mode=mode, objective="max-free-memory")
    simple = plan(graph("scout"), gpus="16xH200", mode=mode, objective="simplest")
    least = min(row.total_bytes for row in planned.layouts if row.fits)
    assert planned.memory_per_device.total_bytes == least < simple.memory_per_device.total_bytes


def test_the_old_name_is_refused_with_the_new_one() -> None:
    with pytest.raises(UserError, match="max-free-memory"):
        plan(graph("scout"), gpus="8xH100", objective="balanced")


def test_training_takes_no_longer_than_by_memory() -> None:
    options: dict[str, Any] = {"gpus": "2048xH100", "mode": "train", "batch": 2048, "train_tokens": 15 * 10**12}
    chosen, roomy = (plan(graph("scout"), **options, objective=name) for name in BOTH)
    assert hours(chosen) < 0.95 * hours(roomy)


def hours(planned: Plan) -> float:
    assert planned.latency is not None
    return planned.latency.gpu_hours or 0.0


def test_choosing_by_time_takes_a_twentieth_of_a_second() -> None:
    plan(graph("scout"), gpus="8xH100")
    contexts = iter(range(1000, 1030))
    assert takes_at_most(
        0.5, lambda: [plan(graph("scout"), gpus="8xH100", context=next(contexts)) for _ in range(10)]
    )  # ten plans: all that a plan does beside the start, not the choice alone


def test_layouts_that_are_left_untimed_for_their_number_are_reported() -> None:
    many, few = plan(graph("deepseek-v3"), gpus="720720xH100"), plan(graph("scout"), gpus="8xH100")
    timed = sum(row.time_per_output_token_seconds is not None for row in many.layouts)
    left = sum(row.fits for row in many.layouts) - timed
    assert left > 0
    assert f"{left:,} more layouts fit, whose replicas are larger: they are not timed" in many.reasons
    assert not any("not timed" in reason for reason in few.reasons)
