"""Laws of deployments: one client is the plan, halves add up, drafts cost their formula, chains pass their stages."""

import pytest

from l4spec import compile as compile_spec
from l4spec import load
from l4spec.errors import UserError
from l4spec.graph.build import mtp_graph
from l4spec.library import shipped_of
from l4spec.sharding.layout import Layout
from planners import plan
from planners.counts.mtp import mtp_weight_bytes
from planners.simulate.request import SimulateRequest
from planners.simulate.requested_scenario import scenario_of
from planners.simulate.run import Simulation
from planners.simulate.times.interface import StepBatch
from planners.simulate.times.planned import PlannedTimes
from planners.timing.drafts import module_model
from planners.timing.layer_demand import Step
from tests.planners.simulate.scenarios import STEPS, serve, simulation

ONE = "workload: {arrivals: {kind: closed, clients: 1}, prompt_tokens: 1k, output_tokens: 50, requests: 3}"
MANY = "workload: {arrivals: {kind: poisson, rate: 20/s}, prompt_tokens: 100, output_tokens: 20, requests: 200}"


def test_a_closed_loop_of_one_client_takes_what_the_plans_step_model_says() -> None:
    run = simulation(f"models: {{scout: {{gpus: 8xH100}}}}\n{ONE}")
    times = run.servers["scout"].times
    assert isinstance(times, PlannedTimes)
    ask = times.model.seconds
    ttft = times.request_seconds + ask(Step(prompt_tokens=1000, prompt_length=1000, logit_rows=1))
    decode = sum(ask(Step(decode=1, context=1000.0 + token, logit_rows=1)) for token in range(1, 50))
    for request in run.run().requests:
        assert abs(request.ttft / 1e9 - ttft) < 1e-8
        # a run of 49 steps grows by whole nanoseconds a step, so by up to 49 x 48 / 2 ns less, and each is rounded
        assert abs(request.e2e / 1e9 - (ttft + decode)) < 1.3e-6


def test_littles_law_holds_to_floating_point() -> None:
    """The integral of the requests in the system is the sum of their times there, whatever happened."""
    outcome = serve(f"models: {{m: {{spec: tiny/scout, gpus: 1xH100, {STEPS}}}}}\n{MANY}")
    result = outcome.result
    total = sum(request.e2e for request in outcome.requests) / 1e9
    assert abs(result.mean_in_system * result.duration - total) < 1e-9 * total


def test_disaggregation_with_an_infinite_link_is_the_sum_of_its_halves() -> None:
    apart = "disaggregated: {prefill_replicas: 1, link: infinite}"
    outcome = serve(f"models: {{m: {{spec: tiny/scout, gpus: 1xH100, {STEPS}, {apart}}}}}\n{ONE}")
    for request in outcome.requests:
        assert request.ttft == 10_000_000
        assert request.e2e == request.ttft + 49 * 10_000_000


def test_a_faster_link_never_raises_the_mean_latency() -> None:
    means = []
    for link in ("1 MB/s", "100 MB/s", "10 GB/s", "infinite"):
        apart = f"disaggregated: {{prefill_replicas: 1, link: {link}}}"
        result = serve(f"models: {{m: {{spec: llama-3.1-8b, gpus: 1xH100, {STEPS}, {apart}}}}}\n{MANY}").result
        assert result.e2e is not None
        means.append(result.e2e.mean)
    assert means == sorted(means, reverse=True)


def test_drafts_that_are_never_accepted_cost_what_their_formula_says() -> None:
    """Each step checks k + 1 tokens and pays for k drafts, and brings one token."""
    drafts = "speculation: {kind: mtp, acceptance: [0.0, 0.0]}"
    run = simulation(f"models: {{scout: {{gpus: 8xH100, {drafts}}}}}\n{ONE}")
    times = run.servers["scout"].times
    assert isinstance(times, PlannedTimes)
    steps = sum(round(times.seconds([StepBatch(1, 1000 + token, (), 0, 3)]) * 1e9) for token in range(1, 50))
    (request, *_) = run.run().requests
    assert request.e2e - request.ttft == steps
    checked = times.model.seconds(Step(prompt_tokens=3, prompt_length=1003, prompt_cached=1000, logit_rows=3))
    assert times.draft is not None
    assert times.seconds([StepBatch(1, 1001, (), 0, 3)]) == checked + times.draft(StepBatch(1, 1001, (), 0, 3))


def test_a_declared_module_drafts_at_its_own_cost() -> None:
    """The module's step: its block, projection and head, by the planner's step model; its weights and cache count."""
    serving = "models: {deepseek-v3: {gpus: 8xH200, quantization: fp8-block, DRAFT}}\n" + ONE
    plain = simulation(serving.replace(", DRAFT", "")).servers["deepseek-v3"]
    server = simulation(serving.replace("DRAFT", "speculation: {kind: mtp, acceptance: [0.8]}")).servers["deepseek-v3"]
    times, graph = server.times, compile_spec(load("deepseek-v3"))
    module = mtp_graph(graph)
    assert isinstance(times, PlannedTimes)
    assert times.draft is not None
    assert module is not None
    alone = module_model(times.model, module)
    step = Step(decode=2, context=500.0)
    assert times.draft(StepBatch(2, 1000, (), 0, 1)) == alone.seconds(step, server=False)
    head = alone.head_seconds(step)
    assert head < alone.seconds(step, server=False) < times.model.seconds(step, server=False) / 10
    weights = mtp_weight_bytes(graph, alone.scheme, Layout())
    assert weights / 8 <= server.memory.beside - plain.memory.beside < weights / 8 * 1.02


def test_a_module_is_on_the_last_pipeline_stage_alone_as_in_the_plan() -> None:
    """Whichever stage has the least room for a cache, its memory is what the plan with drafts counts there."""
    where = {"gpus": "8xH200", "tp": 1, "pp": 8, "quantization": "fp8-block", "engine": "vllm"}
    fields = ", ".join(f"{name}: {value}" for name, value in where.items())
    drafts = "speculation: {kind: mtp, acceptance: [0.8]}"
    server = simulation(f"models: {{deepseek-v3: {{{fields}, {drafts}}}}}\n{ONE}").servers["deepseek-v3"]
    planned = plan("deepseek-v3", context=1024, draft_acceptance="0.8", **where).memory_per_device
    assert server.memory.own + server.memory.beside == planned.total_bytes - planned.kv_cache_bytes


def test_accepted_drafts_bring_tokens_and_all_of_them_come_out() -> None:
    steps = {}
    for acceptance in ("[0.0]", "[1.0]", "[1.0, 1.0, 1.0]"):
        drafts = f"speculation: {{kind: mtp, acceptance: {acceptance}}}"
        outcome = serve(f"models: {{m: {{spec: tiny/scout, gpus: 1xH100, {drafts}}}}}\n{ONE}")
        assert all(request.generated == 50 for request in outcome.requests)
        steps[acceptance] = outcome.result.servers[0].steps
    assert steps["[0.0]"] == 3 * (1 + 49)
    assert steps["[1.0]"] == 3 * (1 + 25)
    assert steps["[1.0, 1.0, 1.0]"] == 3 * (1 + 13)


CHAIN = """\
chain:
  - {name: filter, seconds: 5 ms}
  - {name: before, model: g, template_tokens: 64, output_tokens: 3, refusal_rate: %s}
  - {name: answer, model: m}
  - {name: after, model: g, reads: both, output_tokens: 3, check: %s}
"""


def chained(check: str, refusals: str = "0.0", shared: str = "") -> str:
    models = f"m: {{spec: tiny/scout, gpus: 1xH100, {STEPS}}}, g: {{spec: tiny/scout, gpus: 1xH100, {STEPS}{shared}}}"
    return f"models: {{{models}}}\n{ONE}\n{CHAIN % (refusals, check)}"


def test_a_request_passes_its_stages_one_after_the_other() -> None:
    """5 ms, a guard of 3 steps, an answer of 50, and 3 more steps that hold back the answer or not."""
    (blocking, *_), (streaming, *_) = (serve(chained(check)).requests for check in ("blocking", "streaming"))
    assert blocking.ttft == blocking.e2e == 565_000_000
    assert streaming.ttft == 45_000_000
    assert streaming.e2e == 535_000_000


def test_refused_prompts_are_never_answered() -> None:
    outcome = serve(chained("blocking", "1.0"))
    assert outcome.result.refused == 3
    assert all(request.first_token_at < 0 for request in outcome.requests)
    assert [server.steps for server in outcome.result.servers if server.key == "m"] == [0]


def test_models_on_the_same_gpus_share_their_memory_and_take_turns() -> None:
    alone, together = (simulation(chained("streaming", shared=shared)) for shared in ("", ", shares_gpus_with: m"))
    assert together.servers["m"].blocks_per_rank < 0.51 * alone.servers["m"].blocks_per_rank
    assert together.run().result.num_gpus == 1
    assert alone.run().result.num_gpus == 2


def test_nobody_waits_longer_than_a_turn_for_shared_gpus() -> None:
    """A guard of three steps beside a busy model takes six: every other step is its own."""
    outcome = serve(
        chained("blocking", shared=", shares_gpus_with: m")
        .replace("clients: 1", "clients: 4")
        .replace("requests: 3", "requests: 40")
    )
    assert outcome.result.e2e is not None
    assert outcome.result.e2e.max < 2 * (0.5 + 2 * 0.03 + 0.005) + 0.1


def test_images_become_tokens_and_time() -> None:
    text = "models: {scout: {gpus: 8xH100}}\n" + ONE
    plain, seen = serve(text), serve(text.replace("requests: 3", "requests: 3, images: {tiles: 4}"))
    assert seen.requests[0].prompt == plain.requests[0].prompt + 4 * 144
    assert seen.requests[0].ttft > plain.requests[0].ttft
    with pytest.raises(UserError, match="the model has no vision"):
        simulation(f"models: {{m: {{spec: llama-3.1-8b, gpus: 1xH100}}}}\n{ONE.replace('requests: 3', 'images: {}')}")


@pytest.mark.parametrize("name", shipped_of("scenario"))
def test_a_shipped_scenario_runs_at_small_size_and_says_what_its_times_rest_on(name: str) -> None:
    count = 2 if "context" in name else 12
    run = Simulation(scenario_of(name, SimulateRequest(requests=count)))
    result = run.run().result
    assert result.finished + result.refused == count
    assert all(len(server.basis) >= 3 for server in result.servers)


PAIR = "gpus: 8xH100, tp: {tp}, pp: {pp}, disaggregated: {{prefill_replicas: 1, {link}}}"


@pytest.mark.parametrize(("tp", "pp"), [(8, 1), (2, 4)])
def test_a_link_between_replicas_carries_the_whole_cache(tp: int, pp: int) -> None:
    """Of 8 KV heads each tp rank has its own: 2,000 tokens of Scout are 196,608 B each, over 48 equal layers."""
    run = simulation(f"models: {{scout: {{{PAIR.format(tp=tp, pp=pp, link='link: 400 GB/s')}}}}}\n{ONE}")
    link = run.servers["scout"].cache_link
    assert link is not None
    assert link.nanoseconds(2000) == round(2000 * 196_608 / 400)
    run = simulation(f"models: {{scout: {{{PAIR.format(tp=tp, pp=pp, link='')}}}}}\n{ONE}")
    by_default = run.servers["scout"].cache_link
    assert by_default is not None
    assert by_default.nanoseconds(2000) == link.nanoseconds(2000)  # 8 devices of 50 GB/s each


def test_caches_are_sent_at_the_pace_of_the_slower_end() -> None:
    """One prefill device has the whole cache, each of eight decode devices an eighth."""
    apart = "gpus: 8xH100, disaggregated: {prefill_replicas: 1, prefill_gpus: 1xH100}"
    run = simulation(f"models: {{m: {{spec: llama-3.1-8b, {apart}}}}}\n{ONE}")
    link = run.servers["m"].cache_link
    assert link is not None
    assert link.other_end is not None
    assert link.nanoseconds(2000) == link.other_end.nanoseconds(2000) == round(2000 * 131_072 / 50)


@pytest.mark.parametrize(
    "model",
    [
        "disaggregated: {prefill_replicas: 2}",
        "disaggregated: {prefill_replicas: 2}, speculation: {kind: mtp, acceptance: [0.8, 0.6]}",
        "disaggregated: {prefill_replicas: 2}, kv_blocks: 700",
        "engine: sglang-hybrid, speculation: {kind: mtp, acceptance: [0.8, 0.6]}",
        "speculation: {kind: mtp, acceptance: [0.8, 0.6]}, kv_blocks: 700",
    ],
)
def test_gaps_between_tokens_add_up_to_the_time_between_first_and_last_tokens(model: str) -> None:
    load = "prompt_tokens: {kind: lognormal, mean: 1k, cv: 1.0, most: 5k}, output_tokens: 100, requests: 60"
    workload = f"workload: {{arrivals: {{kind: poisson, rate: 10/s}}, {load}}}"
    outcome = serve(f"models: {{scout: {{gpus: 8xH100, {model}}}}}\n{workload}")
    assert outcome.result.itl is not None
    assert outcome.result.finished == 60
    total = sum(request.last_token_at - request.first_token_at for request in outcome.requests) / 1e9
    # gaps of runs of decode steps stand by the means of quarters, of tokens that come together by whole nanoseconds
    assert abs(outcome.result.itl.mean * 99 * 60 - total) < 1e-4 * total


def test_tokens_of_a_guard_are_no_gaps_of_the_answer() -> None:
    chain = "chain: [{name: answer, model: scout}, {name: check, model: guard, output_tokens: 100, check: streaming}]"
    models = f"scout: {{gpus: 8xH100, {STEPS}}}, guard: {{spec: llama-guard-4-12b, gpus: 1xH100, times: SLOW}}"
    models = models.replace("SLOW", "{kind: fixed, step: 1 s}")
    outcome = serve(f"models: {{{models}}}\n{chain}\n{ONE}")
    assert outcome.result.itl is not None
    assert outcome.result.itl.max < 1


@pytest.mark.parametrize(("engine", "served"), [("sglang-hybrid", 3), ("vllm", 0)])
def test_a_prompt_longer_than_a_step_without_chunks_does_not_block_the_queue(engine: str, served: int) -> None:
    """SGLang lets it go alone; vLLM does not start where sequences may be longer, so that it is refused by name."""
    long = "scheduler: {chunked_prefill: false, max_num_batched_tokens: 512}"
    text = f"models: {{scout: {{gpus: 8xH100, engine: {engine}, {long}}}}}\n"
    if served:
        assert serve(text + ONE).result.finished == served
        return
    with pytest.raises(UserError, match=r"1,050 tokens are more than a step takes \(512\), and chunked_prefill is off"):
        serve(text + ONE)
