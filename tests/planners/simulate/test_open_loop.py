"""The plan's formulas of an open loop and of long prompts, against the simulator, which schedules every step."""

from math import sqrt
from statistics import mean, stdev
from typing import Any

import pytest

from l4spec import compile as compile_spec
from l4spec import load
from planners import Plan, plan
from planners.simulate.request import SimulateRequest
from planners.simulate.requested_scenario import scenario_of
from planners.simulate.run import Outcome, Simulation

SEEDS = 4
# what the formulas leave out: the spread of the number of sequences, and that a step has a budget of tokens
BIAS_TTFT, BIAS_E2E = 0.03, 0.05


def simulated(spec: str, seed: int, **options: Any) -> Outcome:
    """One run of a shipped model."""
    return Simulation(scenario_of(spec, SimulateRequest(**options, seed=seed))).run()


def planned(spec: str, **options: Any) -> Plan:
    """The plan of the same."""
    return plan(compile_spec(load(spec)), **options)


@pytest.mark.parametrize("prompt", [8192, 8193, 20_000, 60_000])
def test_a_prompt_of_many_steps_takes_one_client_what_the_simulator_says(prompt: int) -> None:
    deployed = {"gpus": "8xH100", "tp": 8, "ep": 1, "engine": "vllm", "prompt_tokens": prompt, "output_tokens": 10}
    by_plan = planned("scout", concurrency=1, **deployed).latency
    assert by_plan is not None
    assert by_plan.ttft_seconds is not None
    (request, *_) = simulated("scout", 0, concurrency=1, requests=1, **deployed).requests
    assert by_plan.ttft_seconds == pytest.approx(request.ttft / 1e9, rel=1e-3)  # a decode step's cache read is in it


@pytest.mark.parametrize(
    ("spec", "gpus", "prompt", "output", "rate"),
    [
        ("llama-3.1-8b", "1xH100", 1000, 300, 1),
        ("llama-3.1-8b", "1xH100", 4000, 100, 3),  # prompts take a third of the time
        ("llama-3.1-70b", "4xH100", 1000, 300, 3),
        ("scout", "8xH100", 4000, 100, 3),
        ("maverick", "8xH200", 1000, 300, 3),
    ],
)
def test_an_open_loop_is_planned_as_it_is_simulated(spec: str, gpus: str, prompt: int, output: int, rate: int) -> None:
    deployed = {"gpus": gpus, "tp": int(gpus[0]), "ep": 1, "engine": "vllm"}
    lengths = {"prompt_tokens": prompt, "output_tokens": output}
    latency = planned(spec, rate=rate, **deployed, **lengths).latency
    assert latency is not None
    assert latency.ttft_seconds is not None
    assert latency.tokens_per_second_per_user is not None
    by_plan = latency.ttft_seconds, output / latency.tokens_per_second_per_user
    results = [
        simulated(spec, seed, rate=f"{rate}/s", requests=600, **deployed, **lengths).result for seed in range(SEEDS)
    ]
    for what, planned_seconds, bias in zip(("ttft", "e2e"), by_plan, (BIAS_TTFT, BIAS_E2E), strict=True):
        means = [getattr(result, what).mean for result in results]
        error = stdev(means) / sqrt(SEEDS)
        assert abs(planned_seconds - mean(means)) < bias * mean(means) + 2 * error, what
