"""The plan of a scenario: one request alone takes what a simulation of one takes; memory and GPUs add up."""

from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

import planners
from l4spec.errors import UserError
from l4spec.library import shipped_of
from l4spec.report.page import to_text
from l4spec.report.scenario_page import scenario_page
from l4spec.spec.document import read_text
from l4spec.spec.document_kinds import parse_as
from l4spec.spec.scenario import Scenario
from l4spec.spec.scenario.references import load_scenario, with_models
from l4spec.spec.scenario.workload import Length
from planners.simulate.run import Simulation
from planners.simulate.scenario_plan import ScenarioPlan, plan_scenario
from planners.simulate.workload.draws import lengths, mean_length
from tests.planners.simulate.scenarios import HEAD

ONE = "workload: {{arrivals: {{kind: closed, clients: 1}}, prompt_tokens: {}, output_tokens: {}, requests: 1}}\n"
TWO_MODELS = "models: {m: {spec: llama-3.1-8b, gpus: 1xH100}, g: {spec: llama-3.1-8b, gpus: 1xH100}}\n"


def planned(text: str) -> ScenarioPlan:
    """The plan of a scenario whose head is left out."""
    document = read_text(HEAD + text, "test.yaml")
    return plan_scenario(with_models(parse_as(document, Scenario), document))


def tolerance(plan: ScenarioPlan) -> float:
    """Seconds by which whole nanoseconds may differ: a run of n steps grows by whole ones, so by n^2 / 2 at most."""
    steps = sum(stage.output_tokens for stage in plan.stages)
    return 1e-9 * (steps * steps / 2 + 100)


def assert_alone(text: str) -> None:
    """One request alone takes in the simulation what the plan says."""
    document = read_text(HEAD + text, "test.yaml")
    loaded = with_models(parse_as(document, Scenario), document)
    plan = plan_scenario(loaded)
    (request,) = Simulation(loaded).run().requests
    assert request.outcome == "finished"
    assert abs(request.ttft / 1e9 - plan.ttft_seconds) < tolerance(plan)
    assert abs(request.e2e / 1e9 - plan.e2e_seconds) < tolerance(plan)


@st.composite
def chains(draw: st.DrawFn) -> str:
    """A chain of up to three checks around an answer, and a request of fixed length."""
    check = "{{name: s{0}, model: g, reads: {1}, template_tokens: {2}, output_tokens: {3}, check: {4}}}"
    timed = "{{name: t{0}, seconds: {1} ms}}"
    before = [
        draw(
            st.one_of(
                st.builds(timed.format, st.just(index), st.integers(1, 200)),
                st.builds(
                    check.format,
                    st.just(index),
                    st.just("prompt"),
                    st.integers(1, 400),
                    st.integers(1, 5),
                    st.sampled_from(["blocking", "streaming"]),
                ),
            )
        )
        for index in range(draw(st.integers(0, 2)))
    ]
    after = [
        check.format(9, draw(st.sampled_from(["answer", "both"])), 100, draw(st.integers(1, 5)), kind)
        for kind in draw(st.sampled_from([[], ["blocking"], ["streaming"]]))
    ]
    stages = [*before, "{name: answer, model: m}", *after]
    listed = "".join(f"  - {stage}\n" for stage in stages)
    workload = ONE.format(draw(st.integers(1, 20_000)), draw(st.integers(1, 200)))
    return f"{TWO_MODELS}chain:\n{listed}{workload}"


@settings(max_examples=25)
@given(chains())
def test_one_request_alone_takes_what_a_simulation_of_one_takes(text: str) -> None:
    assert_alone(text)


@pytest.mark.parametrize(
    "model",
    [
        "gpus: 8xH100, tp: 4, ep: 2",
        "gpus: 8xH100, disaggregated: {prefill_replicas: 2, link: 10 GB/s}",
        "gpus: 8xH100, speculation: {kind: mtp, acceptance: [0.0, 0.0]}",
        "gpus: 8xH100, speculation: {kind: mtp, acceptance: [1.0]}",
        "gpus: 8xH100, scheduler: {max_num_batched_tokens: 512}",
        "gpus: 8xH100, engine: sglang-hybrid",
        "gpus: 8xH100, times: {kind: fixed, step: 10 ms, per_token: 1 us}",
    ],
)
def test_every_way_of_serving_takes_alone_what_its_simulation_takes(model: str) -> None:
    assert_alone(f"models: {{scout: {{{model}}}}}\n{ONE.format(5_000, 41)}")


@pytest.mark.parametrize("name", shipped_of("scenario"))
def test_a_shipped_scenario_is_planned_and_its_memory_adds_up(name: str) -> None:
    plan = plan_scenario(load_scenario(name))
    assert plan.num_gpus == sum(server.num_gpus for server in plan.servers)
    for server in plan.servers:
        assert server.capacity_bytes is not None
        assert server.cache_bytes is not None
        assert 0 < server.own_bytes + server.beside_bytes + server.cache_bytes <= server.capacity_bytes
        assert server.sequences
    text = to_text(scenario_page(plan), 100)
    assert all(stage.name in text for stage in plan.stages)
    assert all(len(line) <= 100 for line in text.splitlines())


def test_models_on_the_same_gpus_are_counted_once_and_lie_beside_each_other() -> None:
    chain = "chain:\n  - {name: check, model: g, output_tokens: 2}\n  - {name: answer, model: m}\n"
    apart = planned(TWO_MODELS + chain + ONE.format(100, 10))
    models = TWO_MODELS.replace("gpus: 1xH100}}", "gpus: 1xH100, shares_gpus_with: m}}")
    both = planned(models + chain + ONE.format(100, 10))
    assert (apart.num_gpus, both.num_gpus) == (2, 1)
    assert apart.usd_per_hour is not None
    assert both.usd_per_hour == apart.usd_per_hour / 2
    for server, other, alone in zip(both.servers, reversed(both.servers), apart.servers, strict=True):
        assert server.beside_bytes == other.own_bytes
        assert (alone.cache_bytes or 0) > 2 * (server.cache_bytes or 0)


def test_a_level_that_one_request_alone_misses_is_reported() -> None:
    plan = planned(f"models: {{scout: {{gpus: 8xH100}}}}\nslo: {{ttft: 1 ms, e2e: 1 h}}\n{ONE.format(4_000, 10)}")
    (miss,) = plan.misses
    assert miss.startswith("ttft: ")
    assert miss in to_text(scenario_page(plan))


def test_a_check_that_refuses_after_the_stream_lowers_no_share_of_answers() -> None:
    chain = (
        "chain:\n  - {name: before, model: g, output_tokens: 1, refusal_rate: 0.1}\n  - {name: answer, model: m}\n"
        "  - {name: after, model: g, reads: answer, output_tokens: 1, refusal_rate: 0.5, check: KIND}\n"
    )
    text = TWO_MODELS + chain + ONE.format(100, 10)
    assert planned(text.replace("KIND", "streaming")).answered == 0.9
    assert planned(text.replace("KIND", "blocking")).answered == 0.45


def test_a_model_that_does_not_fit_is_refused_with_its_place() -> None:
    with pytest.raises(UserError) as error:
        planned(f"models: {{behemoth: {{gpus: 1xH100}}}}\n{ONE.format(100, 10)}")
    assert "models.behemoth" in str(error.value)


@pytest.mark.parametrize(
    "written",
    [
        700,
        {"kind": "uniform", "low": 3, "high": 900},
        {"kind": "exponential", "mean": 400},
        {"kind": "exponential", "mean": 400, "most": 500},
        {"kind": "lognormal", "mean": 400, "cv": 1.5},
        {"kind": "lognormal", "mean": 400, "cv": 1.5, "most": 600},
    ],
)
def test_a_mean_length_is_the_mean_of_what_is_drawn(written: object) -> None:
    length: Length = TypeAdapter(Length).validate_python(written)
    drawn = list(islice(lengths(length, Random(5), lambda _: pytest.fail("no file")), 40_000))
    # five standard errors, and one token: exponential lengths are rounded up, and none is below 1
    assert abs(fmean(drawn) - mean_length(length, lambda _: pytest.fail("no file"))) < 1 + 5 * stdev(drawn) / 200


@pytest.mark.parametrize("reads", ["prompt", "answer", "both"])
def test_a_check_sees_the_images_of_the_prompt_if_it_reads_the_prompt(reads: str) -> None:
    """Llama Guard 4 has a vision tower: images take its time and tokens where it reads the prompt, else nothing."""
    text = (
        "models: {scout: {gpus: 8xH100}, guard: {spec: llama-guard-4-12b, gpus: 1xH100}}\n"
        "chain:\n  - {name: answer, model: scout}\n"
        f"  - {{name: check, model: guard, reads: {reads}, output_tokens: 4}}\n" + ONE.format(2_000, 100)
    )
    shown = text.replace("requests: 1", "requests: 1, images: {per_request: 3, tiles: 5}")
    assert shown != text
    assert_alone(shown)
    plain, seen = planned(text).stages[1], planned(shown).stages[1]
    assert (seen.seconds > plain.seconds, seen.prompt_tokens > plain.prompt_tokens) == (reads != "answer",) * 2


@pytest.mark.parametrize(
    ("limits", "prompt", "output"), [("", 400, 40), (", requests: 2", 150, 15), (", seconds: 1 s", 100, 10)]
)
def test_the_mean_request_of_a_trace_is_of_what_is_sent(tmp_path: Path, limits: str, prompt: int, output: int) -> None:
    lines = [(0, 100, 10), (1500, 200, 20), (3000, 900, 90)]
    rows = [f'{{"timestamp": {t}, "input_length": {p}, "output_length": {o}}}' for t, p, o in lines]
    (tmp_path / "trace").write_text("\n".join(rows), encoding="utf-8")
    models = "models: {m: {spec: llama-3.1-8b, gpus: 1xH100}}\n"
    plan = planned(models + f"workload: {{arrivals: {{kind: trace, path: {tmp_path / 'trace'}}}{limits}}}\n")
    assert (plan.prompt_tokens, plan.output_tokens) == (prompt, output)


def test_a_trace_without_a_request_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n", encoding="utf-8")
    models = "models: {m: {spec: llama-3.1-8b, gpus: 1xH100}}\n"
    with pytest.raises(UserError, match="the trace holds no request"):
        planned(models + f"workload: {{arrivals: {{kind: trace, path: {tmp_path / 'trace'}}}}}\n")


@pytest.mark.parametrize(("per_request", "tiles"), [(0.5, 1), (1.5, 5), (2, 3)])
def test_images_of_a_part_of_the_requests_count_by_their_mean(per_request: float, tiles: int) -> None:
    """The mean of many drawn requests, within four standard errors: an image more or less in each."""
    models = "models: {m: {spec: scout, gpus: 8xH100, tp: 8}}\n"
    images = f"requests: 400, images: {{per_request: {per_request}, tiles: {tiles}}}"
    load = f"workload: {{arrivals: {{kind: poisson, rate: 1/s}}, prompt_tokens: 100, output_tokens: 1, {images}}}\n"
    document = read_text(HEAD + models + load, "test.yaml")
    loaded = with_models(parse_as(document, Scenario), document)
    drawn = [request.prompt for request in Simulation(loaded).run().requests]
    error = stdev(drawn) / len(drawn) ** 0.5
    assert abs(plan_scenario(loaded).prompt_tokens - fmean(drawn)) <= 4 * error + 0.5


@pytest.mark.parametrize(
    ("prefill", "given", "usd_per_hour"),
    [
        ("8xH100", "", 8 * 2.0 + 8 * 2.0),
        ("4xB200", ", prefill_usd_per_gpu_hour: 5", 8 * 2.0 + 4 * 5.0),
        ("4xB200", "", 8 * 2.0 + 4 * 6.79),
    ],
)
def test_prefill_gpus_of_another_kind_have_a_price_of_their_own(prefill: str, given: str, usd_per_hour: float) -> None:
    """The list price where none is given: B200 costs 6.79 (RunPod, 2026-09-25)."""
    split = f"disaggregated: {{prefill_replicas: 1, prefill_gpus: {prefill}{given}}}"
    models = f"models: {{m: {{spec: scout, gpus: 8xH100, usd_per_gpu_hour: 2, {split}}}}}\n"
    plan = planned(models + ONE.format(1000, 10))
    assert plan.usd_per_hour == pytest.approx(usd_per_hour)


@pytest.mark.parametrize("draft", ["compare/qwen3-0.6b", "compare/qwen2.5-7b"])
def test_a_draft_that_tensor_parallelism_does_not_divide_is_whole_on_its_device(draft: str) -> None:
    """28 heads of Qwen2.5 7B are not cut in 8; its time was of one device, and its memory an eighth."""
    speculation = f"speculation: {{kind: draft, spec: {draft}, acceptance: [0.7]}}"
    head = "models: {m: {spec: scout, gpus: 8xH100, tp: 8"
    alone, beside = (
        planned(f"{head}{more}}}}}\n" + ONE.format(1000, 10)).servers[0] for more in ("", f", {speculation}")
    )
    weights = planners.plan(draft, quantization="bf16").weights.bytes
    assert beside.beside_bytes - alone.beside_bytes == (weights if "2.5" in draft else weights // 8)
