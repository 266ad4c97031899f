"""The simulator of RL infrastructure against closed forms, Little's law, steps made one by one, and published runs."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.rl_accuracy import judge, read_runs
from l4spec.errors import UserError
from l4spec.spec.recipe.load import load_recipe
from l4spec.spec.recipe.rollouts import RolloutSpec
from planners.recipes.cost import RecipeOptions, plan_recipe
from planners.recipes.rl.events import RlSimulation, simulate_rl
from planners.recipes.rl.fit import SynchronousStep, fit_factors
from planners.recipes.rl.lengths import AnswerLengths
from planners.recipes.rl.phase import EIGHTHS, Infrastructure, sample_of
from planners.recipes.rl.planned import PlannedDecode
from planners.recipes.rl.setup import DecodeTimes, RlSetup

DECODE = DecodeTimes((1, 8, 64), (0.01, 0.015, 0.04))
EVEN = RlSetup(
    answers=32,
    lengths=AnswerLengths(50.0, 50, 0.0),
    replicas=4,
    slots=8,
    decode=DECODE,
    train_seconds=2.0,
    push_seconds=0.25,
    is_colocated=True,
)
VARIED = replace(EVEN, lengths=AnswerLengths(60.0, 400, 1.0), is_colocated=False, staleness=1.0, push_seconds=0.0)


@settings(max_examples=60, deadline=None)
@given(mean=st.floats(2, 500), longest=st.integers(600, 5000), spread=st.floats(0, 1.5), seed=st.integers(0, 99))
def test_lengths_have_their_mean_and_their_bound(mean: float, longest: int, spread: float, seed: int) -> None:
    lengths = AnswerLengths(mean, longest, spread).draw(4000, seed)
    assert max(lengths) <= longest
    # rounding to whole tokens moves a mean by half a token at most; 4,000 strata miss the rest by less than 1 %
    assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.01, abs=0.5)


def test_a_mean_beyond_the_longest_is_refused() -> None:
    with pytest.raises(UserError, match="60 tokens in the mean, 50 at most"):
        AnswerLengths(60.0, 50, 1.0)


def test_equal_answers_in_turns_take_their_steps_and_the_update() -> None:
    times = simulate_rl(EVEN)
    assert times.step_seconds == pytest.approx(50 * 0.015 + 2.0 + 0.25)
    assert times.training == pytest.approx(2.0 / times.step_seconds)
    assert (times.mean_staleness, times.max_staleness) == (0.0, 0)


def test_a_busy_learner_or_busy_replicas_set_the_pace() -> None:
    apart = replace(EVEN, is_colocated=False, staleness=1.0, push_seconds=0.0)
    assert simulate_rl(apart).step_seconds == pytest.approx(2.0)
    generating = simulate_rl(replace(apart, train_seconds=0.01))
    assert generating.step_seconds == pytest.approx(50 * 0.015, rel=0.02)
    assert generating.generating == pytest.approx(1.0, abs=0.02)


def _one_by_one(setup: RlSetup, lengths: list[int]) -> float:
    """Seconds of generating all answers, a decode step at a time, dealt to replicas in turn."""
    ends = []
    for index in range(setup.replicas):
        left, seconds = lengths[index :: setup.replicas], 0.0
        while left:
            seconds += setup.decode.at(len(left))
            left = [one - 1 for one in left if one > 1]
        ends.append(seconds)
    return max(ends)


@settings(max_examples=15, deadline=None)
@given(spread=st.floats(0, 1.5), seed=st.integers(0, 50))
def test_a_batch_takes_what_its_decode_steps_take(spread: float, seed: int) -> None:
    setup = replace(EVEN, lengths=AnswerLengths(60.0, 400, spread), seed=seed)
    lengths = setup.lengths.draw(setup.answers, setup.seed * 1_000_003)
    step = RlSimulation(setup).run(warm_up=0, measured=1).step_seconds
    assert step == pytest.approx(_one_by_one(setup, lengths) + setup.train_seconds)


@settings(max_examples=25, deadline=None)
@given(
    staleness=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 4.0]),
    train=st.floats(0.05, 4.0),
    chunks=st.sampled_from([1, 2, 4]),
    partial=st.booleans(),
    in_order=st.booleans(),
)
def test_littles_law_gives_mean_staleness(
    staleness: float, train: float, chunks: int, partial: bool, in_order: bool
) -> None:
    setup = replace(
        VARIED, staleness=staleness, train_seconds=train, chunks=chunks, is_partial=partial, in_order=in_order
    )
    times = RlSimulation(setup).run(warm_up=10, measured=200)
    # edges: answers that are in flight when measuring begins and ends, at most 6 batches of 200
    assert times.mean_staleness == pytest.approx(times.staleness_by_littles_law, rel=0.02, abs=0.02)
    rate = setup.answers / times.step_seconds
    assert times.latency_seconds * rate == pytest.approx(times.in_flight, rel=0.02)
    if in_order:
        assert times.max_staleness <= math.ceil(staleness)


def test_more_staleness_is_never_slower_and_long_answers_need_it() -> None:
    seconds = [simulate_rl(replace(VARIED, staleness=one)).step_seconds for one in (0.0, 0.25, 0.5, 1.0, 2.0)]
    assert all(later <= earlier * 1.01 for earlier, later in pairwise(seconds))
    assert seconds[0] > 1.2 * seconds[-1]


@settings(max_examples=40, deadline=None)
@given(
    staleness=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    train=st.floats(0.05, 4.0),
    chunks=st.sampled_from([1, 2]),
    partial=st.booleans(),
    in_order=st.booleans(),
    is_colocated=st.booleans(),
    replicas=st.integers(1, 8),
)
def test_no_step_is_shorter_than_its_bound(
    staleness: float, train: float, chunks: int, partial: bool, in_order: bool, is_colocated: bool, replicas: int
) -> None:
    setup = replace(
        VARIED,
        staleness=0.0 if is_colocated else staleness,
        train_seconds=train,
        chunks=1 if is_colocated else chunks,
        is_partial=partial,
        in_order=in_order,
        is_colocated=is_colocated,
        replicas=replicas,
    )
    steps = 100
    seconds = RlSimulation(setup).run(warm_up=10, measured=steps).step_seconds
    # answers in flight when measuring begins were partly generated before: at most those of `staleness + 1` steps
    assert seconds >= setup.least_step_seconds * (1 - (staleness + 1) / steps)


@pytest.mark.parametrize("staleness", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("train_seconds", [0.0, 3.0, 12.0])
def test_the_share_that_is_chosen_is_as_fast_as_the_fastest_of_all(staleness: float, train_seconds: float) -> None:
    rollouts = RolloutSpec(staleness=staleness)
    decode = PlannedDecode(DECODE, slots=64, is_bound=False)
    whole = Infrastructure(rollouts, 256, LONG_TAIL, 16, 1, decode, train_seconds, train_seconds / 3, 0.0)
    setup, _ = whole.fastest()
    every = [simulate_rl(whole.setup(share)).step_seconds for share in EIGHTHS]
    # shares are compared by samples, whose steps differ by less than 2 % from those of their setups
    assert simulate_rl(setup).step_seconds <= 1.02 * min(every)


LONG_TAIL = AnswerLengths(300.0, 3000, 1.2)
QUEUE = replace(
    VARIED, answers=1024, replicas=16, slots=128, lengths=LONG_TAIL, train_seconds=8.0, staleness=4.0, push_seconds=0.5
)


@pytest.mark.parametrize("train_seconds", [4.0, 8.0, 12.0])
def test_times_are_those_of_a_queue_that_has_filled(train_seconds: float) -> None:
    setup = replace(QUEUE, train_seconds=train_seconds)
    early, late = RlSimulation(setup).run(3, 4), RlSimulation(setup).run(64, 96)
    settled = simulate_rl(setup)
    # 24 batches of 1,024 answers, whose lengths are spread evenly: steps vary by a percent
    assert settled.step_seconds == pytest.approx(late.step_seconds, rel=0.02)
    assert settled.mean_staleness == pytest.approx(late.mean_staleness, rel=0.05)
    assert early.mean_staleness < 0.9 * late.mean_staleness


@pytest.mark.parametrize("staleness", [1.0, 4.0, 8.0])
def test_a_sample_of_a_setup_takes_as_long(staleness: float) -> None:
    setup = replace(QUEUE, staleness=staleness)
    sample = sample_of(setup)
    assert (sample.replicas, sample.answers) == (2, 128)
    assert simulate_rl(sample).step_seconds == pytest.approx(simulate_rl(setup).step_seconds, rel=0.02)
    in_turns = replace(setup, staleness=0.0)
    assert sample_of(in_turns) == in_turns


def test_draining_before_weights_are_taken_costs_time() -> None:
    busy = replace(VARIED, train_seconds=0.1)
    assert simulate_rl(replace(busy, is_partial=False)).step_seconds > 1.1 * simulate_rl(busy).step_seconds


def test_factors_that_made_the_rows_are_fitted() -> None:
    rows = []
    for replicas in (2, 4, 8):
        planned = replace(EVEN, replicas=replicas, slots=16, train_seconds=8.0 / replicas, push_seconds=0.0)
        measured = replace(planned, decode=DECODE.times(1.7), train_seconds=planned.train_seconds * 0.6)
        rows.append(SynchronousStep(planned, simulate_rl(measured).step_seconds))
    factors = fit_factors(rows)
    # the pull towards each other moves them by some hundredths
    assert factors.generation == pytest.approx(1.7, rel=0.05)
    assert factors.training == pytest.approx(0.6, rel=0.05)


HEAD = "id,source,model,hardware,gpus_total,gpus_train,gpus_rollout,mode,staleness,max_len,mean_len,rollouts_per_step,"
NEMO = """step_s,gen_s,logprob_s,update_s
17,docs/about/performance-summary.md,DeepSeek V3,H100,256,,,on_policy,0,1536,701,512,134,,,
18,docs/about/performance-summary.md,DeepSeek V3,H100,512,,,on_policy,0,1536,697,512,111,,,
19,docs/about/performance-summary.md,DeepSeek V3,H100,512,,,one_step_off,1,1536,710,512,64.1,,,
20,docs/about/performance-summary.md,Qwen3-235B,H100,128,,,on_policy,0,8192,5698,512,395,,,
21,docs/about/performance-summary.md,Qwen3-235B,H100,256,,,on_policy,0,8192,5713,512,312,,,
22,docs/about/performance-summary.md,Qwen3-235B,H100,256,,,one_step_off,1,8192,5721,512,231,,,
"""


def test_published_steps_of_two_models_are_met(tmp_path: Path) -> None:
    """NVIDIA NeMo-RL v0.6 (commit 7ea279a): factors by the synchronous rows, the asynchronous ones within 15 %."""
    path = tmp_path / "rows.csv"
    path.write_text(HEAD + NEMO)
    factors, judged = judge(read_runs(path))
    assert len(factors) == len(judged) == 2
    assert all(abs(one.error) <= 0.15 for one in judged), [one.error for one in judged]


RECIPE = """\
l4spec: 1
kind: recipe
name: online
model: maverick
data: {{sources: {{hard: {{kind: described, description: prompts}}}}}}
watts_per_gpu: 700
phases:
  - name: rl
    kind: rl
    tokens: 1B
    context: 4096
    batch: 512
    group: 8
    max_answer: 16384
    optimizer: {{learning_rate: 0.000001}}
    rollouts: {{mode: {mode}, mean_answer: 2048, staleness: 2}}
"""


def test_a_recipe_is_planned_with_the_time_of_its_answers(tmp_path: Path) -> None:
    plans = {}
    for mode in ("synchronous", "asynchronous"):
        path = tmp_path / f"{mode}.yaml"
        path.write_text(RECIPE.format(mode=mode))
        plans[mode] = plan_recipe(load_recipe(path), RecipeOptions("256xH100"))
    for mode, answer in plans.items():
        (phase,) = answer.phases
        assert phase.rl is not None
        assert phase.step_seconds == phase.rl.step_seconds, mode
        steps = phase.tokens / (phase.batch * phase.context)
        assert phase.gpu_hours == pytest.approx(phase.rl.step_seconds * steps * 256 / 3600)
    together, apart = (plans[mode].phases[0].rl for mode in ("synchronous", "asynchronous"))
    assert together is not None
    assert apart is not None
    assert apart.speed_up == pytest.approx(together.step_seconds / apart.step_seconds)
    assert apart.generation_gpus + apart.training_gpus == 256
    gains = {one.name: one.speed_up for one in apart.conditions}
    assert gains["staleness 0"] < gains["all answers equally long"] < apart.speed_up


def test_gpus_that_cannot_be_divided_are_refused_by_phase(tmp_path: Path) -> None:
    path = tmp_path / "few.yaml"
    path.write_text(RECIPE.format(mode="asynchronous").replace("staleness: 2", "generation_share: 0.01"))
    with pytest.raises(UserError, match="phase rl: 128 GPUs, of which a replica takes"):
        plan_recipe(load_recipe(path), RecipeOptions("128xH100"))


def test_updates_on_the_same_answers_cost_their_time_and_generate_once() -> None:
    """In turns a batch takes its generation, its updates, and a third of one for each model's log probabilities."""

    def synchronous(*changes: str) -> tuple[float, float, int]:
        layout = "{tp: 8, ep: 8, pp: 8, dp: 8}"  # with a reference beside it the model would be laid out otherwise
        asked = ("phases[0].rollouts.mode=synchronous", f"phases[0].layout={layout}", *changes)
        (phase,) = plan_recipe(load_recipe("recipes/behemoth-rl", asked)).phases
        assert phase.rl is not None
        assert phase.step_seconds is not None
        return phase.rl.step_seconds, phase.step_seconds, phase.generated_flops

    once, _, generated = synchronous()
    (with_kl, *_), (twice, of_step, fewer) = (
        synchronous("phases[0].kl_weight=0.1"),
        synchronous("phases[0].iterations=2"),
    )
    update = 3 * (with_kl - once)  # on all GPUs; steps are means over the same draws of lengths
    assert twice - once == pytest.approx(update, rel=1e-6)
    assert of_step == twice / 2
    assert fewer == generated // 2
