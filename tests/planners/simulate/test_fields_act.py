"""Fields of a scenario act, or are refused by name: none is ignored."""

from pathlib import Path

import pytest

from l4spec.errors import UserError
from planners.simulate.requests import Request
from tests.planners.simulate.scenarios import STEPS, serve, simulation

ONE = "workload: {arrivals: {kind: closed, clients: 1}, prompt_tokens: 1k, output_tokens: 50, requests: 3}"


@pytest.mark.parametrize(
    ("engine", "setting", "message"),
    [
        ("vllm", "order: longest_prefix", "the scheduler of vllm knows fcfs or priority, not longest_prefix"),
        ("vllm", "overbooking: max_utilization", "the scheduler of vllm has no such setting"),
        ("sglang-hybrid", "watermark: 0.1", "the scheduler of sglang has no such setting"),
        ("sglang-hybrid", "overbooking: max_utilization", "the scheduler of sglang has no such setting"),
        ("tensorrt-llm", "order: priority", "the scheduler of tensorrt-llm knows fcfs, not priority"),
        ("tensorrt-llm", "watermark: 0.1", "the scheduler of tensorrt-llm has no such setting"),
    ],
)
def test_a_setting_that_an_engine_does_not_have_is_refused(engine: str, setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        simulation(f"models: {{scout: {{gpus: 8xH100, engine: {engine}}}}}\nscheduler: {{{setting}}}\n{ONE}")


def traced(tmp_path: Path, fields: str) -> tuple[Request, ...]:
    """Requests of 40 that a trace has, one a second."""
    lines = ["arrival_time_ns,input_toks,output_toks", *(f"{second * 10**9},20,3" for second in range(40))]
    path = tmp_path / "trace.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    workload = f"workload: {{arrivals: {{kind: trace, path: {path}}}, {fields}}}"
    return serve(f"models: {{m: {{spec: tiny/scout, gpus: 1xH100, {STEPS}}}}}\n{workload}").requests


def test_the_seconds_of_a_workload_end_a_trace(tmp_path: Path) -> None:
    assert [request.arrival for request in traced(tmp_path, "seconds: 12 s")] == [n * 10**9 for n in range(12)]
    assert len(traced(tmp_path, "high_priority: 0")) == 40


def test_requests_of_a_trace_have_priorities(tmp_path: Path) -> None:
    shares = [sum(one.priority == 0 for one in traced(tmp_path, f"high_priority: {share}")) for share in (0.3, 1)]
    assert 3 <= shares[0] <= 21  # 12 of 40 by a binomial law, three standard deviations of 2.9 about it
    assert shares[1] == 40


def test_requests_of_a_trace_show_no_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the requests of a trace show no images"):
        traced(tmp_path, "images: {per_request: 1}")
