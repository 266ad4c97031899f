"""Laws of chains and of models on the same GPUs: every request ends once, waits count, instructions are shared."""

import pytest

from l4spec.errors import UserError
from planners.simulate.times.planned import PlannedTimes
from planners.timing.layer_demand import Step
from tests.planners.simulate.scenarios import STEPS, serve, simulation

GUARD = "guard: {{spec: llama-guard-4-12b, gpus: 1xH100, {times}, {more}}}"
CHECK = "chain: [{name: answer, model: m}, {name: check, model: guard, output_tokens: 4, check: streaming}]"
LOAD = (
    "workload: {arrivals: {kind: poisson, rate: 5/s}, requests: 40, output_tokens: 50, "
    "prompt_tokens: {kind: lognormal, mean: 500, cv: 1.0, most: 4k}}"
)


def models(more: str = "kv_dtype: bf16") -> str:
    guard = GUARD.format(times=STEPS, more=more)
    return f"models: {{m: {{spec: tiny/scout, gpus: 1xH100, {STEPS}}}, {guard}}}"


def test_a_check_that_its_guard_refuses_ends_no_request_again() -> None:
    run = simulation(f"{models('scheduler: {max_model_len: 600}')}\n{CHECK}\n{LOAD}")
    outcome = run.run()
    result = outcome.result
    assert result.refused_because
    assert (result.finished, run.num_finished, run.in_system) == (40, 40, 0)
    total = sum(request.e2e for request in outcome.requests) / 1e9
    assert result.mean_in_system * result.duration == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("block", [16, 64])
def test_a_guards_instructions_are_shared_by_blocks_of_its_own(block: int) -> None:
    """Of 400 tokens of instructions as many as fill whole blocks are cached from the second request on."""
    check = CHECK.replace("output_tokens: 4", "output_tokens: 4, template_tokens: 400, reads: answer")
    shared = f"scheduler: {{block_size_tokens: {block}}}"
    result = serve(f"{models(shared)}\n{check}\n{LOAD.replace('poisson, rate: 5', 'constant, rate: 1')}").result
    guard = next(server for server in result.servers if server.key == "guard")
    assert guard.prefix_hit_rate == pytest.approx(39 * (400 // block * block) / (40 * 450), rel=1e-9)


def test_gaps_between_tokens_count_the_turns_of_others_on_the_same_gpus() -> None:
    both = f"m: {{spec: scout, gpus: 4xH100, {STEPS}}}, guard: {{spec: llama-guard-4-12b, gpus: 4xH100, {STEPS}"
    outcome = serve(f"models: {{{both}, shares_gpus_with: m}}}}\n{CHECK}\n{LOAD}")
    assert outcome.result.itl is not None
    total = sum(request.last_token_at - request.first_token_at for request in outcome.requests) / 1e9
    assert outcome.result.itl.mean * 49 * 40 == pytest.approx(total, rel=1e-9)


def test_replicas_on_the_gpus_of_another_model_are_not_more_than_its_replicas() -> None:
    both = "m: {spec: scout, gpus: 4xH100}, guard: {spec: llama-guard-4-12b, gpus: 4xH100, replicas: 2"
    with pytest.raises(UserError, match="at most the 1 of 'm', whose GPUs these are"):
        simulation(f"models: {{{both}, shares_gpus_with: m}}}}\n{CHECK}\n{LOAD}")


@pytest.mark.parametrize("draft", ["kind: mtp", "kind: draft, spec: mobilellm-r1-950m"])
def test_factors_of_a_fit_time_drafts_too(draft: str) -> None:
    """A fit serves a run again and again by other factors; its drafts stay, and follow them."""
    run = simulation(f"models: {{scout: {{gpus: 8xH100, speculation: {{{draft}, acceptance: [0.8]}}}}}}\n{LOAD}")
    times = run.servers["scout"].times
    assert isinstance(times, PlannedTimes)
    assert times.draft is not None
    (batch,) = (rank.batch() for rank in run.clusters["scout"].replicas[0].ranks)
    batch.decode, batch.context = 4, 4000
    slow = times.with_factors(times.factors.model_copy(update={"memory": times.factors.memory / 2}))
    assert slow.draft is not None
    assert slow.draft(batch) > times.draft(batch)
    assert slow.model.seconds(Step(decode=4, context=1000)) > times.model.seconds(Step(decode=4, context=1000))
    assert times.with_factors(times.factors).draft is not None


@pytest.mark.parametrize("draft", ["kind: mtp", "kind: draft, spec: mobilellm-r1-950m"])
def test_a_draft_takes_memory_from_models_on_the_same_gpus(draft: str) -> None:
    """All that lies on a device fits: both models, the draft, and the caches of both."""
    drafted = f"m: {{spec: scout, gpus: 4xH100, speculation: {{{draft}, acceptance: [0.8]}}}}"
    beside = "guard: {spec: llama-guard-4-12b, gpus: 4xH100, shares_gpus_with: m}"
    run = simulation(f"models: {{{drafted}, {beside}}}\n{CHECK}\n{LOAD}")
    answering, guard = (run.servers[key].memory for key in ("m", "guard"))
    assert answering.cache is not None
    assert guard.cache is not None
    assert answering.capacity is not None
    drafting = answering.beside - guard.own
    assert drafting > 0
    assert guard.beside == answering.own + drafting
    assert answering.own + guard.own + drafting + answering.cache + guard.cache <= answering.capacity


def test_a_model_without_room_beside_another_counts_both() -> None:
    both = "m: {spec: scout, gpus: 4xH100}, guard: {spec: llama-guard-4-12b, gpus: 4xH100, kv_dtype: bf16, MORE"
    both = both.replace("MORE", "shares_gpus_with: m, memory_fraction: 0.2}")
    with pytest.raises(
        UserError, match=r"B of [\d,]+ B are taken, [\d,]+ B of them by what else is on these GPUs"
    ) as error:
        simulation(f"models: {{{both}}}\n{CHECK}\n{LOAD}")
    numbers = [int(word.replace(",", "")) for word in str(error.value).split() if word.replace(",", "").isdigit()]
    taken, limit, beside = numbers[:3]
    assert taken > limit
    assert taken > beside


def test_an_answer_that_a_check_holds_back_has_no_gaps_between_tokens() -> None:
    """It comes as a whole, so that its time per output token is 0."""
    result = serve(f"{models()}\n{CHECK.replace('streaming', 'blocking')}\n{LOAD}").result
    assert result.itl is None
    assert result.tpot is not None
    assert result.tpot.max == 0
    assert serve(f"{models()}\n{CHECK}\n{LOAD}").result.itl is not None
