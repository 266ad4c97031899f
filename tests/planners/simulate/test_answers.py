"""What is asked beyond one run: intervals, capacity, files of requests and timelines, and an early end."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from math import ceil
from pathlib import Path
from typing import Any

import pytest

import planners
from l4spec.errors import UserError
from l4spec.report.page import Code, Figure
from l4spec.report.simulate_page import capacity_page
from l4spec.spec.scenario.references import LoadedScenario
from l4spec.spec.scenario.workload import Sessions
from planners.simulate.capacity import capacity, replicas_by_hour
from planners.simulate.exports import COLUMNS, requests_csv, timeline
from planners.simulate.repeats import repeated, side_by_side, student
from planners.simulate.request import SimulateRequest
from planners.simulate.requested_scenario import scenario_of
from planners.simulate.result_types import SimulationResult
from planners.simulate.run import Simulation, simulate

LOAD = SimulateRequest(gpus="1xH100", rate="20/s", prompt_tokens=200, output_tokens=20, requests=200, ttft="100 ms")
NO_LEVELS = SimulateRequest(gpus="1xH100", rate="1/s", prompt_tokens=9, output_tokens=9)


def test_students_quantiles_are_those_of_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 29: 2.045, 1000: 1.962}
    assert all(abs(student(freedom) / value - 1) < 0.003 for freedom, value in table.items())


def test_repeats_give_intervals_whatever_the_number_of_jobs() -> None:
    loaded = scenario_of("llama-3.1-8b", LOAD)
    one, two = repeated(loaded, 3, 1), repeated(loaded, 3, 2)
    assert one == two
    assert one.intervals["e2e_mean"].repeats == 3
    assert one.intervals["e2e_mean"].half_width > 0


def test_capacity_is_a_rate_that_is_held_beside_one_that_is_not() -> None:
    answer = capacity(scenario_of("llama-3.1-8b", LOAD))
    assert answer.attainment >= 0.9
    assert 1 < answer.beyond / answer.rate <= 1.02
    for drawn, kind in ((False, Code), (True, Figure)):
        blocks = [block for section in capacity_page(answer, drawn=drawn) for block in section.blocks]
        assert any(isinstance(block, kind) for block in blocks)
    with pytest.raises(UserError, match="capacity needs a service level"):
        capacity(scenario_of("llama-3.1-8b", NO_LEVELS))


def test_a_rate_that_is_sustained_stays_so_however_long_the_load() -> None:
    """A hundred requests were in time at 31 a second, of 3,000 a quarter: the queue had only begun to grow."""
    load = SimulateRequest(
        gpus="4xH100", rate="4/s", prompt_tokens=400, output_tokens=300, requests=100, ttft="1 s", tpot="50 ms"
    )
    answer = capacity(scenario_of("scout", load))

    def attained(rate: float) -> float:
        longer = load.changed(rate=f"{rate}/s", requests=5000)
        return simulate(scenario_of("scout", longer)).attainment

    assert attained(answer.rate * 0.98) >= 0.9
    assert attained(answer.rate * 1.1) < 0.5


def test_replicas_by_hour_round_up() -> None:
    assert replicas_by_hour([0, 3600, 3601, 36_000], 1.0) == (0, 1, 2, 10)
    assert replicas_by_hour([3600, 1800], 1.0, 900.0) == (1, 2)  # the trace ends in a quarter of its second hour
    assert replicas_by_hour([3600, 2], 1.0, 0.1) == (1, 1)  # two requests are no rate of 20 a second
    assert replicas_by_hour([600], 5.0, 60.0) == (2,)


def test_the_rate_of_a_trace_is_that_of_its_arrivals_whatever_its_clock(tmp_path: Path) -> None:
    """Answers that outlast the last arrival do not count, and hours count from the first one."""
    levels = LOAD.changed(rate=None, prompt_tokens=None, output_tokens=None, requests=None, ttft="2 s")
    answers = []
    for begin in (0, 1_700_000_000_000):
        lines = [
            json.dumps({"timestamp": begin + 250 * index, "input_length": 4000, "output_length": 400})
            for index in range(120)
        ]
        (tmp_path / "trace").write_text("\n".join(lines), encoding="utf-8")
        answers.append(capacity(scenario_of("llama-3.1-8b", levels.changed(trace=str(tmp_path / "trace")))))
    early, late = answers
    assert early == late
    last = early.result.duration
    assert early.rate > 1.02 * 120 / last  # until the last token, two answers' time after the last arrival
    assert len(early.hours) == 1
    assert early.hours[0] == ceil(4 / early.rate)


def test_sessions_send_nothing_after_the_load_has_ended() -> None:
    loaded = scenario_of("llama-3.1-8b", LOAD)
    sessions = Sessions(turns=8, think=2.0)
    workload = loaded.scenario.workload.model_copy(update={"seconds": 5.0, "requests": None, "sessions": sessions})
    scenario = loaded.scenario.model_copy(update={"workload": workload})
    outcome = Simulation(replace(loaded, scenario=scenario)).run()
    assert 0 < max(request.arrival for request in outcome.requests) < 5 * 10**9


def test_every_request_has_a_line_and_a_place_on_the_timeline() -> None:
    simulation = Simulation(scenario_of("llama-3.1-8b", LOAD))
    outcome = simulation.run()
    rows = list(csv.DictReader(StringIO(requests_csv(outcome.requests))))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 200
    assert all(float(row["e2e_s"]) >= float(row["ttft_s"]) > 0 for row in rows)
    events = json.loads(timeline(outcome.requests, simulation.recorder))["traceEvents"]
    assert sum(event["ph"] == "b" for event in events) == 3 * 200
    assert {event["ph"] for event in events} == {"b", "e", "C"}


def test_a_time_limit_and_an_interruption_keep_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    many = LOAD.changed(requests=20_000, rate="2000/s")
    cut = Simulation(scenario_of("llama-3.1-8b", many)).run(time_limit=1e-9).result
    assert cut.ended == "time limit"
    assert cut.finished + cut.cut == cut.requests

    def interrupt(finished: int, total: int) -> None:
        raise KeyboardInterrupt

    stopped = Simulation(scenario_of("llama-3.1-8b", many)).run(progress=interrupt).result
    assert stopped.ended == "interrupted"
    assert stopped.requests > 0


def test_a_load_that_has_its_own_length_is_simulated_once_at_each_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace, or a load of given seconds, cannot be made longer."""
    tried: list[str] = []

    def counted(scenarios: Sequence[LoadedScenario], jobs: int) -> list[SimulationResult]:
        tried.extend(str(each.scenario.workload.arrivals) for each in scenarios)
        return side_by_side(scenarios, jobs)

    monkeypatch.setattr("planners.simulate.capacity.side_by_side", counted)
    loaded = scenario_of("llama-3.1-8b", LOAD)
    workload = loaded.scenario.workload.model_copy(update={"seconds": 5.0, "requests": None})
    capacity(replace(loaded, scenario=loaded.scenario.model_copy(update={"workload": workload})))
    assert len(tried) == len(set(tried)) > 3


@pytest.mark.parametrize(
    ("name", "gpus"), [("compare/gpt-oss-20b", "1xH100"), ("compare/deepseek-v3", "16xH200"), ("scout", "8xH100")]
)
def test_a_simulation_takes_the_weights_that_a_plan_takes(name: str, gpus: str) -> None:
    """Models are published in mxfp4, fp8 and bf16: by default both have these, and one client sees the same times."""
    asked: dict[str, Any] = {
        "gpus": gpus,
        "engine": "vllm-hybrid",
        "prompt_tokens": 500,
        "output_tokens": 50,
        "concurrency": 1,
    }
    latency = planners.plan(name, **asked).latency
    result = simulate(scenario_of(name, SimulateRequest(**asked, requests=3)))
    assert latency is not None
    assert result.ttft is not None
    assert result.tpot is not None
    assert result.ttft.mean == pytest.approx(latency.ttft_seconds, rel=1e-3)
    assert result.tpot.mean == pytest.approx(latency.time_per_output_token_seconds, rel=1e-3)
