"""Limits of a step, `--max-num-seqs` and `--prefill-chunk`, change times as they do in a simulation."""

from typing import Any

import pytest

from planners import plan
from tests.planners.simulate.scenarios import serve

LOOP = {"gpus": "8xH100", "tp": 8, "engine": "vllm", "prompt_tokens": 8000, "output_tokens": 100}


def latency(**options: Any) -> tuple[float, float, float]:
    """TTFT, TPOT, and tokens per second of a GPU."""
    planned = plan("scout", **options).latency
    assert planned is not None
    assert planned.ttft_seconds is not None
    assert planned.time_per_output_token_seconds is not None
    assert planned.tokens_per_second_per_gpu is not None
    assert sum(part.seconds for part in planned.ttft_parts) == pytest.approx(planned.ttft_seconds, rel=1e-9)
    return planned.ttft_seconds, planned.time_per_output_token_seconds, planned.tokens_per_second_per_gpu


def test_no_more_sequences_decode_at_once_than_a_step_takes() -> None:
    """The others queue: those that run have the time per token of as many clients, and all wait by Little's law."""
    ttft, tpot, speed = latency(**LOOP, concurrency=64, max_num_seqs=16)
    _, few_tpot, few_speed = latency(**LOOP, concurrency=16, max_num_seqs=16)
    assert tpot == few_tpot
    assert ttft == pytest.approx(64 / 16 * 100 * tpot - 100 * tpot, rel=1e-12)
    assert speed == pytest.approx(few_speed, rel=0.1)  # which counts the first token's wait within each client's time


def test_a_batch_that_a_step_does_not_take_is_named() -> None:
    planned = plan("scout", gpus="8xH100", tp=8, batch=64, max_num_seqs=16).latency
    assert planned is not None
    assert "a step of the engine has at most 16 sequences, the decode step here has 64" in planned.cautions


@pytest.mark.parametrize("chunk", [128, 512, 2048, 8000])
def test_small_chunks_delay_the_first_token_as_in_a_simulation(chunk: int) -> None:
    model = f"models: {{scout: {{gpus: 8xH100, tp: 8, scheduler: {{max_num_batched_tokens: {chunk}}}}}}}"
    load = "workload: {arrivals: {kind: closed, clients: 1}, prompt_tokens: 8000, output_tokens: 100, requests: 1}"
    simulated = serve(f"{model}\n{load}").result.ttft
    assert simulated is not None
    ttft, _, _ = latency(**LOOP, concurrency=1, prefill_chunk=chunk)
    # the plan's first step also decodes the request's own token: less than a tenth of a step of 5.7 ms
    assert ttft == pytest.approx(simulated.mean, abs=0.57e-3)
    alone, _, _ = latency(gpus="8xH100", tp=8, engine="vllm", context=8000, prefill_chunk=chunk)
    assert alone == pytest.approx(simulated.mean, rel=1e-2)  # 16 of up to 62 steps are timed


def test_larger_chunks_never_delay_a_first_token() -> None:
    chunks = (64, 100, 1000, 3000, 8191, 8192, 65536)
    for clients in (1, 32):
        times = [latency(**LOOP, concurrency=clients, prefill_chunk=chunk)[0] for chunk in chunks]
        assert times == sorted(times, reverse=True)
        assert times[-1] == times[-2] == latency(**LOOP, concurrency=clients)[0]


def test_a_rate_that_is_not_served_is_named() -> None:
    """What most clients get in a closed loop is about the most that any rate gets."""
    cautions = {}
    for rate in (1.0, 200.0):
        planned = plan("scout", **LOOP, rate=rate).latency
        assert planned is not None
        cautions[rate] = [each for each in planned.cautions if "rate is too high" in each]
    assert not cautions[1.0]
    assert cautions[200.0]
    assert "200 requests a second arrive" in cautions[200.0][0]


def test_a_rate_about_as_high_as_what_is_served_is_named() -> None:
    """Near its limit a queue is long for long: of any rate that fills the engine a caution says so."""
    limits = {"gpus": "1xH100", "engine": "vllm", "prompt_tokens": 1000, "output_tokens": 300, "max_num_seqs": 250}
    full = []
    for quarters in range(60, 80):
        planned = plan("llama-3.1-8b", **limits, rate=quarters / 4).latency
        assert planned is not None
        (step, *_) = planned.time_per_output_token_parts
        full.append("of 250 sequences" in step.what)
        assert full[-1] == any(each.startswith("the rate is") for each in planned.cautions), quarters / 4
    assert full == sorted(full)
    assert set(full) == {False, True}
