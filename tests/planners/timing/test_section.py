"""The latency section of a plan."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import l4spec
import planners
from l4spec.errors import UserError
from planners.latency_types import NOT_TIMED_UNDER_CP, Latency
from planners.timing.efficiency import MATMUL_REACH, serving_efficiency

SCOUT = l4spec.compile(l4spec.load("scout"))


def latency(**options: Any) -> Latency:
    result = planners.plan(SCOUT, **{"gpus": "8xH100", "tp": 8, **options}).latency
    assert result is not None
    return result


def test_without_gpus_there_is_no_time() -> None:
    assert planners.plan(SCOUT).latency is None


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp", "ideal"])
def test_under_context_parallelism_times_are_refused_with_the_reason_and_no_number(engine: str) -> None:
    result = latency(cp=4, gpus="32xH100", context=1_000_000, engine=engine)
    assert result == Latency(reason=NOT_TIMED_UNDER_CP)
    assert result.decode is None
    assert result.prefill is None


def test_bounds_stand_below_estimates_and_kinds_sum_to_the_step() -> None:
    result = latency(batch=8)
    for step in (result.prefill, result.decode):
        assert step is not None
        assert step.estimate_seconds is not None
        assert sum(kind.bound_seconds for kind in step.by_kind) == pytest.approx(step.bound_seconds)
        assert step.bound_seconds < step.estimate_seconds
        for kind in step.by_kind:
            resources = (kind.compute_seconds, kind.memory_seconds, kind.links_seconds)
            assert kind.bound_seconds == max(resources)


def test_throughput_is_the_batch_over_the_time_of_a_token() -> None:
    result = latency(batch=32)
    assert result.tokens_per_second_per_user is not None
    assert result.tokens_per_second_per_gpu is not None
    assert result.tokens_per_second_per_gpu * 8 == pytest.approx(32 * result.tokens_per_second_per_user)


def test_estimates_carry_their_error_and_their_source() -> None:
    result = latency()
    assert {error.metric for error in result.errors} == {"tpot", "ttft"}
    assert result.sources
    assert result.factors == "vllm"


def test_only_what_rows_are_like_is_no_extrapolation() -> None:
    dense = l4spec.compile(l4spec.load("llama-3.1-70b"))
    like = planners.plan(dense, gpus="8xH100", tp=8).latency
    longer = planners.plan(dense, gpus="8xH100", tp=8, context=100_000).latency
    assert like is not None
    assert longer is not None
    assert not like.extrapolated
    assert any("at most 8,294 tokens" in note for note in longer.cautions)
    assert any("dense models: an extrapolation to routed experts" in note for note in latency().cautions)
    assert not any("routed experts" in note for note in latency(engine="sglang-hybrid").cautions)


def test_other_hardware_is_called_an_extrapolation() -> None:
    result = latency(gpus="8xB200")
    assert result.extrapolated
    assert any("extrapolation" in note for note in result.cautions)


def test_an_unmeasured_engine_gets_bounds_and_a_reason() -> None:
    result = latency(engine="llama.cpp")
    assert result.ttft_seconds is None
    assert result.ttft_bound_seconds is not None
    assert result.reason is not None
    assert "llama.cpp" in result.reason


def test_an_unknown_peak_gets_a_reason_and_no_number() -> None:
    result = planners.plan(SCOUT, gpus="1xm3-ultra", quantization="w4a16").latency
    assert result is not None
    assert result.decode is None
    assert result.reason is not None


def test_output_tokens_turn_a_batch_into_a_closed_loop() -> None:
    alone, loop = latency(batch=32), latency(batch=32, output_tokens=1024)
    assert (loop.prompt_tokens, loop.output_tokens) == (7168, 1024)
    assert alone.time_per_output_token_seconds is not None
    assert loop.time_per_output_token_seconds is not None
    assert loop.time_per_output_token_seconds > alone.time_per_output_token_seconds * 0.9


def test_tokens_cost_what_the_gpus_cost_meanwhile() -> None:
    result = latency(batch=32, usd_per_gpu_hour=2.0)
    assert result.usd_per_million_output_tokens is not None
    assert result.tokens_per_second_per_gpu is not None
    assert result.usd_per_million_output_tokens == pytest.approx(2e6 / (3600 * result.tokens_per_second_per_gpu))


def test_a_training_run_has_hours_and_a_price() -> None:
    result = latency(gpus="512xH100", tp=None, mode="train", batch=1024, train_tokens=40 * 10**12, usd_per_gpu_hour=2.0)
    assert result.gpu_hours is not None
    assert result.usd == pytest.approx(2 * result.gpu_hours)
    assert result.step_time_seconds is not None
    assert result.step_time_bound_seconds is not None
    assert result.step_time_bound_seconds < result.step_time_seconds
    hours = 40e12 / (1024 * 8192) * result.step_time_seconds * 512 / 3600
    assert result.gpu_hours == pytest.approx(hours)


def test_scouts_pre_training_costs_what_its_model_card_says_within_a_third() -> None:
    """5.0M H100-hours for about 40T tokens (meta-llama/llama-models MODEL_CARD); layout and cluster are unknown."""
    result = latency(gpus="16384xH100", tp=None, mode="train", batch=2048, train_tokens=40 * 10**12)
    assert result.gpu_hours is not None
    assert 5.0e6 * 2 / 3 < result.gpu_hours < 5.0e6 * 4 / 3


def test_a_first_token_of_a_routed_model_waits_for_both_constants_of_a_request() -> None:
    factors = serving_efficiency("tensorrt-llm")
    assert factors is not None
    plan = latency(engine="tensorrt-llm")
    assert plan.ttft_seconds is not None
    assert plan.prefill is not None
    assert plan.prefill.estimate_seconds is not None
    waited = plan.ttft_seconds - plan.prefill.estimate_seconds
    assert waited == pytest.approx(factors.request + factors.moe_request)
    assert sum(part.seconds for part in plan.ttft_parts) == pytest.approx(plan.ttft_seconds)


def test_full_recomputation_makes_training_slower() -> None:
    full, none = (
        latency(gpus="512xH100", tp=8, mode="train", batch=1024, checkpointing=kind) for kind in ("full", "none")
    )
    assert full.step_time_seconds is not None
    assert none.step_time_seconds is not None
    assert full.step_time_seconds > none.step_time_seconds


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"output_tokens": 8192}, "output_tokens"),
        ({"output_tokens": 0}, "output_tokens"),
        ({"usd_per_gpu_hour": -1.0}, "usd_per_gpu_hour"),
        ({"usd_per_gpu_hour": float("nan")}, "usd_per_gpu_hour"),
        ({"train_tokens": 0}, "train_tokens"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(options: dict[str, object], path: str) -> None:
    with pytest.raises(UserError) as error:
        latency(**options)
    assert error.value.problems[0].path == path


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 20),
    output=st.sampled_from([None, 1, 500]),
    tp=st.sampled_from([1, 2, 8]),
    engine=st.sampled_from(["vllm", "sglang", "tensorrt-llm", "ideal"]),
)
def test_images_delay_the_first_token_by_their_tiles_at_the_tower_s_rate(
    images: int, output: int | None, tp: int, engine: str
) -> None:
    """An image of Scout is 17 tiles, as in the plan of a scenario; one more image, one more share of the delay."""
    options: dict[str, Any] = {"tp": tp, "gpus": f"{tp}xB300", "prompt_tokens": 4000, "output_tokens": output}
    options = {name: value for name, value in options.items() if value is not None} | {"engine": engine}
    plain, one, seen = (latency(**options, images=number) for number in (0, 1, images))
    of_image = 17 * 1_015_628_557_312 / tp / 2.25e15
    assert (seen.ttft_bound_seconds or 0) - (plain.ttft_bound_seconds or 0) == pytest.approx(images * of_image)
    factors = serving_efficiency(engine)
    if factors is None:  # bounds alone
        assert seen.ttft_seconds is None
        return
    assert seen.ttft_seconds is not None
    assert one.ttft_seconds is not None
    assert plain.ttft_seconds is not None
    delay = seen.ttft_seconds - plain.ttft_seconds
    assert delay == pytest.approx(images * (one.ttft_seconds - plain.ttft_seconds), rel=1e-6)
    assert delay == pytest.approx(images * of_image / factors.compute / MATMUL_REACH["bf16"], rel=1e-6)
    assert sum(part.seconds for part in seen.ttft_parts) == pytest.approx(seen.ttft_seconds)


@given(prompt=st.integers(1, 20_000), output=st.integers(1, 5_000), batch=st.integers(1, 64))
def test_the_prefill_of_requests_is_that_of_their_prompts(prompt: int, output: int, batch: int) -> None:
    flops = planners.plan(SCOUT, prompt_tokens=prompt, output_tokens=output, batch=batch).flops
    assert flops.prefill == planners.plan(SCOUT, context=prompt, batch=batch).flops.prefill
    assert flops.decode == planners.plan(SCOUT, context=prompt + output, batch=batch).flops.decode


@settings(max_examples=40, deadline=None)
@given(
    degrees=st.sampled_from([(8, 1, 1, 1), (1, 1, 1, 8), (1, 1, 8, 1), (2, 4, 1, 1), (2, 1, 2, 2), (1, 2, 2, 2)]),
    clients=st.integers(1, 100),
    engine=st.sampled_from(["vllm", "sglang", "tensorrt-llm"]),
)
def test_the_tokens_of_all_gpus_are_those_of_the_clients(
    degrees: tuple[int, int, int, int], clients: int, engine: str
) -> None:
    """Also where some of the ranks or micro-batches have none, and the price is that of what clients get."""
    options: dict[str, Any] = dict(zip(("tp", "ep", "pp", "dp"), degrees, strict=True))
    load = {"prompt_tokens": 1000, "output_tokens": 200, "concurrency": clients, "usd_per_gpu_hour": 2.0}
    result = latency(**options, **load, gpus="8xH200", engine=engine, quantization="fp8")
    assert result.tokens_per_second_per_gpu is not None
    assert result.tokens_per_second_per_gpu * 8 == pytest.approx(clients * (result.tokens_per_second_per_user or 0))
    dollars = 8 * 2.0 / 3600 / (clients * (result.tokens_per_second_per_user or 0)) * 1e6
    assert result.usd_per_million_output_tokens == pytest.approx(dollars)
