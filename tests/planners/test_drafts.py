"""Plans with drafts: the module's bytes and steps are in them, and one simulated client takes what they say."""

from typing import Any

import pytest

from l4spec import compile as compile_spec
from l4spec import load
from l4spec.errors import UserError
from l4spec.graph.build import mtp_graph
from l4spec.quantization.scheme import scheme_named
from l4spec.quantization.tensors import scheme_of
from l4spec.sharding.layout import Layout
from planners import plan
from planners.counts.kv_cache import growth_per_token, model_rows
from planners.counts.mtp import mtp_weight_bytes
from planners.plan_types import Plan
from planners.request import PlanRequest
from planners.simulate.run import Simulation
from planners.simulate.times.interface import StepBatch
from planners.simulate.times.planned import PlannedTimes
from tests.planners.simulate.scenarios import simulation

GPUS = {"gpus": "8xH200", "tp": 8, "engine": "vllm-hybrid", "quantization": "fp8-block"}
PROMPT, OUTPUT = 1000, 51


def _planned(acceptance: str | None, **options: Any) -> Plan:
    return plan("deepseek-v3", PlanRequest(**{**GPUS, **options}, draft_acceptance=acceptance))


def _simulated(acceptance: str, requests: int) -> Simulation:
    model = (
        f"gpus: 8xH200, tp: 8, engine: vllm-hybrid, quantization: fp8-block, speculation: {{kind: mtp, {acceptance}}}"
    )
    load_of_one = f"{{arrivals: {{kind: closed, clients: 1}}, prompt_tokens: 1k, output_tokens: {OUTPUT}, "
    return simulation(f"models: {{deepseek-v3: {{{model}}}}}\nworkload: {load_of_one}requests: {requests}}}")


def test_a_planned_step_with_drafts_is_the_simulated_one() -> None:
    times = _simulated("acceptance: [0.8, 0.5]", 1).servers["deepseek-v3"].times
    assert isinstance(times, PlannedTimes)
    batch = StepBatch(1, 1001, (), 0, 3)
    made = _planned("0.8,0.5", context=1001)
    assert made.latency is not None
    assert made.drafts is not None
    assert times.draft is not None
    assert made.drafts.step_seconds == pytest.approx(times.seconds([batch]), rel=1e-12)
    assert made.drafts.draft_seconds == pytest.approx(times.draft(batch), rel=1e-12)
    assert made.drafts.tokens_per_step == pytest.approx(1 + 0.8 + 0.8 * 0.5)
    tpot = made.latency.time_per_output_token_seconds
    assert tpot == pytest.approx(times.seconds([batch]) / (1 + 0.8 + 0.8 * 0.5), rel=1e-12)


@pytest.mark.parametrize("share", ["0.0", "1.0"])
def test_one_client_gets_its_tokens_in_the_planned_time(share: str) -> None:
    """Steps at contexts around the planned one: time is linear in the context, so only the mean context differs.

    It differs by at most two tokens of a thousand, and all caches of a step are a small part of its time; nanoseconds
    are rounded.
    """
    (request,) = _simulated(f"acceptance: [{share}]", 1).run().requests
    made = _planned(share, context=PROMPT + OUTPUT, output_tokens=OUTPUT)
    assert made.latency is not None
    tpot = made.latency.time_per_output_token_seconds
    assert (request.e2e - request.ttft) / 1e9 / (OUTPUT - 1) == pytest.approx(tpot, rel=1e-4)
    assert request.ttft / 1e9 == pytest.approx(made.latency.ttft_seconds, rel=0.05)


def test_simulated_steps_bring_the_planned_tokens() -> None:
    """Of n steps with variance below 1 the mean is within 4 / sqrt(n); an answer's last step may be cut."""
    outcome = _simulated("acceptance: [0.8, 0.5]", 40).run()
    (server,) = outcome.result.servers
    decodes = server.steps - 40
    made = _planned("0.8,0.5")
    assert made.drafts is not None
    cut = 2 * 40 / decodes
    assert abs(40 * (OUTPUT - 1) / decodes - made.drafts.tokens_per_step) < 4 / decodes**0.5 + cut


@pytest.mark.parametrize("pp", [1, 2])
def test_a_device_holds_the_modules_weights_and_cache_besides(pp: int) -> None:
    options = {"tp": 8 // pp, "pp": pp, "batch": 4, "engine": "ideal"}
    plain, made = _planned(None, **options), _planned("0.8", **options)
    graph = compile_spec(load("deepseek-v3"))
    module, layout = mtp_graph(graph), Layout(tp=8 // pp, pp=pp)
    assert module is not None
    assert made.drafts is not None
    assert made.drafts.weights_bytes == mtp_weight_bytes(graph, scheme_of(scheme_named("fp8-block")), layout)
    grown = growth_per_token(model_rows(module, Layout(tp=8 // pp), 2))
    assert made.drafts.kv_cache_bytes == 4 * 8192 * grown
    added = made.memory_per_device.total_bytes - plain.memory_per_device.total_bytes
    besides = made.drafts.weights_bytes + made.drafts.kv_cache_bytes
    assert added == besides if pp == 1 else 0 <= added <= besides
    terms = {term.name: term.bytes for term in made.memory_per_device.terms}
    assert sum(terms.values()) == made.memory_per_device.total_bytes
    assert (made.max_context or 0) <= (plain.max_context or 0)
    assert made.weights == plain.weights


def test_more_accepted_drafts_never_take_longer_and_none_accepted_cost_time() -> None:
    options = {"context": 2048, "output_tokens": 256, "batch": 16}
    times = []
    for acceptance in (None, "0.0", "0.3", "0.9", "1.0"):
        latency = _planned(acceptance, **options).latency
        assert latency is not None
        assert latency.time_per_output_token_seconds is not None
        assert (latency.time_per_output_token_bound_seconds or 0) <= latency.time_per_output_token_seconds
        parts = sum(part.seconds for part in latency.time_per_output_token_parts)
        assert parts == pytest.approx(latency.time_per_output_token_seconds)
        times.append(latency.time_per_output_token_seconds)
    plain, *drafted = times
    assert drafted == sorted(drafted, reverse=True)
    assert drafted[-1] < plain < drafted[0]


def test_a_plan_of_its_own_request_is_the_same() -> None:
    made = _planned("0.8,0.5")
    assert made.request["draft_acceptance"] == "0.8,0.5"
    assert plan("deepseek-v3", PlanRequest(**made.request)).drafts == made.drafts


def test_without_the_option_a_plan_says_what_it_does_not_count() -> None:
    assert _planned(None).module_params == 11_610_067_968 + 1_853_358_080
    assert _planned(None).drafts is None
    assert plan("scout").module_params is None


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("scout", {"draft_acceptance": "0.8"}, "declares no multi-token prediction"),
        ("deepseek-v3", {"draft_acceptance": "1.5"}, "shares from 0 to 1"),
        ("deepseek-v3", {"draft_acceptance": "a"}, "expected a number"),
        ("deepseek-v3", {"draft_acceptance": "0.8", "mode": "train"}, "plays no part in training"),
        ("deepseek-v3", {"draft_acceptance": "0.8", "cp": 2, "gpus": "8xH200"}, "is not planned with drafts"),
        (
            "deepseek-v3",
            {"draft_acceptance": "0.8", "host_memory": "1TB", "gpus": "1xH200"},
            "is not planned with drafts",
        ),
    ],
)
def test_what_cannot_draft_is_refused(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(spec, PlanRequest(**options))
