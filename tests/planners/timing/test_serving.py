"""Closed and open loops: laws of queueing that hold whatever the factors."""

from collections.abc import Callable

import pytest

from planners.timing.closed_loop import Load, most_throughput, serve
from planners.timing.layer_demand import Step
from planners.timing.open_loop import open_loop
from planners.timing.step import StepModel

Build = Callable[..., StepModel]


def dense(model: Build) -> StepModel:
    return model("llama-3.1-70b", "h200", tp=4, scheme="fp8", kv_bytes=1)


def test_a_lone_client_sees_bare_decode_steps(model: Build) -> None:
    served = serve(dense(model), Load(1024, 1024, 1))
    assert served.tpot == pytest.approx(dense(model).seconds(Step(decode=1, context=1536.5)))


def test_more_clients_slow_each_other_and_raise_throughput(model: Build) -> None:
    loads = [serve(dense(model), Load(1024, 1024, n)) for n in (1, 4, 16, 64)]
    assert [s.tpot for s in loads] == sorted(s.tpot for s in loads)
    assert [s.requests_per_second for s in loads] == sorted(s.requests_per_second for s in loads)


def test_longer_prompts_delay_the_first_token_and_all_others(model: Build) -> None:
    short, long = (serve(dense(model), Load(prompt, 1024, 16)) for prompt in (1024, 8192))
    assert long.ttft > short.ttft
    assert long.tpot > short.tpot


def test_clients_beyond_the_cache_wait_by_littles_law(model: Build) -> None:
    full = serve(dense(model), Load(8192, 1024, 64, capacity=20))
    assert full.running == 20
    under_way = full.requests_per_second * (full.ttft + 1024 * full.tpot)
    assert under_way == pytest.approx(64)


def test_a_common_start_delays_the_first_prompts(model: Build) -> None:
    steady, started = (serve(dense(model), Load(1024, 1024, 32, waves=waves)) for waves in (None, 10.0))
    assert started.ttft > steady.ttft
    assert started.tpot == steady.tpot


def test_an_open_loop_obeys_littles_law(model: Build) -> None:
    """A request decodes beside as many as decode on average (PASTA)."""
    served = open_loop(dense(model), Load(1024, 256, 1), 4.0)
    assert served.running == pytest.approx(1 + 4.0 * 256 * served.tpot, rel=1e-3)  # where the iteration stops
    assert served.requests_per_second == 4.0


def test_a_rate_beyond_the_capacity_ends_at_the_capacity(model: Build) -> None:
    for capacity, rate in ((8, 4.0), (1e6, 1e4)):  # no room for more sequences, and prompts alone take all the time
        served = open_loop(dense(model), Load(1024, 256, 1, capacity=capacity), rate)
        assert served.requests_per_second < rate
        assert served.running == capacity


def test_the_best_throughput_is_no_less_than_that_of_any_tried_load(model: Build) -> None:
    best = most_throughput(dense(model), Load(1024, 1024, 500, 500, server=False))
    for clients in (500, 250, 125):
        tried = serve(dense(model), Load(1024, 1024, clients, 500, server=False))
        assert best.requests_per_second >= tried.requests_per_second


def test_a_front_end_never_speeds_a_step_up(model: Build) -> None:
    engine = model("llama-3.1-70b", "h200", tp=8, scheme="fp8", kv_bytes=1, engine="tensorrt-llm")
    for batch in (1, 16, 128, 512):
        step = Step(decode=batch, context=1000)
        assert engine.seconds(step, server=True) >= engine.seconds(step, server=False)
