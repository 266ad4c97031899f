"""The cost of a recipe: phases sum, a phase is a training plan, more tokens cost more, and published hours are near."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import l4spec
from l4spec.errors import UserError
from l4spec.layers.declaration import Work
from l4spec.library import shipped_of
from l4spec.runtime.measure.flops import counting_flops
from l4spec.spec.recipe.load import LoadedRecipe, load_recipe
from l4spec.verification.recipe_claims import verify_recipe
from planners.catalog import hardware, shipped_names
from planners.counts.flops import model_flops
from planners.module.executed import executed_flops
from planners.plan import plan
from planners.recipes.cost import RecipeOptions, plan_recipe, request_of
from planners.timing.machine import Machine

TWO = """\
l4spec: 1
kind: recipe
name: two
model: tiny/scout
data: {{sources: {{sums: {{kind: synthetic, task: arithmetic}}}}}}
watts_per_gpu: 700
phases:
  - {{name: first, kind: pretrain, tokens: {first}, context: 64, batch: 8, optimizer: {{learning_rate: 0.01}}}}
  - {{name: second, kind: distill, teacher: big, tokens: {second}, context: 128, batch: 4,
     optimizer: {{learning_rate: 0.01}}}}
teachers: {{big: {{model: tiny/maverick, students: {students}, in_training: {shared}}}}}
"""


def recipe(
    folder: Path, first: int = 51200, second: int = 25600, students: int = 1, shared: float = 0.0
) -> LoadedRecipe:
    path = folder / "two.yaml"
    path.write_text(TWO.format(first=first, second=second, students=students, shared=shared))
    return load_recipe(path)


def test_phases_add_up_to_the_whole(tmp_path: Path) -> None:
    answer = plan_recipe(recipe(tmp_path), RecipeOptions("8xH100", 2.0))
    for field in ("tokens", "model_flops", "gpu_hours", "days", "usd", "energy_joules"):
        assert getattr(answer, field) == pytest.approx(sum(getattr(phase, field) for phase in answer.phases)), field
    assert answer.usd == pytest.approx(2.0 * (answer.gpu_hours or 0))
    assert answer.energy_joules == pytest.approx(700 * 3600 * (answer.gpu_hours or 0))


@pytest.mark.parametrize("name", ["recipes/scout", "recipes/behemoth"])
def test_a_phase_is_a_training_plan_with_its_settings(name: str) -> None:
    loaded = load_recipe(name)
    graph = l4spec.compile(loaded.model(None))
    for phase, cost in zip(loaded.recipe.phases, plan_recipe(loaded).phases, strict=True):
        request = request_of(phase, loaded.recipe, None)
        alone = plan(graph, request.changed(train_tokens=phase.tokens))
        assert alone.latency is not None
        assert cost.gpu_hours == pytest.approx(alone.latency.gpu_hours)
        assert (cost.layout, cost.fits) == (str(alone.layout), alone.fits)


@settings(max_examples=8, deadline=None)
@given(tokens=st.integers(10**4, 10**9), more=st.integers(1, 10**9))
def test_more_tokens_cost_more(tokens: int, more: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("recipes")
    less, greater = (plan_recipe(recipe(folder, first), RecipeOptions("8xH100")) for first in (tokens, tokens + more))
    assert (greater.gpu_hours or 0) > (less.gpu_hours or 0)
    assert greater.model_flops > less.model_flops


def test_planned_flops_of_a_miniature_are_counted_ones() -> None:
    loaded = load_recipe("recipes/collapse")
    (phase,) = loaded.recipe.phases
    graph = l4spec.compile(loaded.model(None))
    model = l4spec.build(graph).train()
    ids = torch.randint(257, (phase.batch, phase.context), generator=torch.Generator().manual_seed(0))
    with counting_flops(model) as counted:
        torch.autograd.backward(model(ids).sum())
    work = Work(phase.batch, phase.context, phase="train")
    assert sum(counted.values()) == executed_flops(graph, work)
    masked = executed_flops(graph, work) - 3 * model_flops(graph, work)  # pairs of a block that the mask leaves out
    assert plan_recipe(loaded).model_flops == (sum(counted.values()) - masked) * phase.num_steps


def test_a_teacher_is_charged_by_what_its_own_training_and_other_students_leave(tmp_path: Path) -> None:
    def charged(**options: float) -> float:
        answer = plan_recipe(recipe(tmp_path, **options), RecipeOptions("8xH100"))  # type: ignore[arg-type]  # drawn
        teacher = answer.phases[1].teacher
        assert teacher is not None
        assert teacher.flops > 0
        return teacher.gpu_hours or 0.0

    alone = charged()
    assert charged(students=4) == pytest.approx(alone / 4)
    assert charged(shared=1.0) == 0
    assert charged(shared=0.75, students=2) == pytest.approx(alone / 8)


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("name", shipped_names("hardware"))
def test_a_given_utilization_is_that_share_of_the_peak_on_any_gpus(name: str, precision: str) -> None:
    """Whether or not training runs on them are fitted."""
    phase_changes = ("utilization=0.4", f"precision={precision}", "context=1024", "batch=64")
    changes = [f"gpus=1x{name}", "model=tiny/scout", *(f"phases.0.{change}" for change in phase_changes)]
    (phase,) = plan_recipe(load_recipe("recipes/behemoth", changes)).phases
    peak = Machine(hardware(name), 8).peak(precision)
    if peak is None:  # of a Mac none is published
        assert (phase.step_seconds, phase.notes[0]) == (None, f"no dense {precision} peak is published for {name}")
        return
    assert phase.flops_per_second_per_gpu == pytest.approx(0.4 * peak)
    assert phase.gpu_hours == pytest.approx(phase.model_flops / (0.4 * peak) / 3600)
    assert (phase.utilization, phase.errors) == (0.4, ())


@pytest.mark.parametrize("name", ["recipes/scout", "recipes/maverick", "recipes/behemoth"])
def test_published_hours_and_rates_agree_with_the_plan(name: str) -> None:
    report = verify_recipe(load_recipe(name))
    assert report.checks
    assert report.holds, report.checks


def test_an_article_s_product_of_degrees_is_found_wrong() -> None:
    (check,) = verify_recipe(load_recipe("recipes/articles/behemoth-24k")).checks
    assert (check.computed, check.holds) == (32768, False)


@pytest.mark.parametrize(
    ("name", "holds"), [("behemoth-100k", [False]), ("scout-tokens", [False, False, True])], ids=str
)
def test_articles_numbers_are_judged_one_by_one(name: str, holds: list[bool]) -> None:
    checks = verify_recipe(load_recipe(f"recipes/articles/{name}")).checks
    assert [check.holds for check in checks] == holds


def test_a_claim_about_a_phase_that_is_not_there_is_refused_at_its_place() -> None:
    claim = "claims=[{what: gpu_hours, value: 1000000, phase: pretrian, source: me}]"
    with pytest.raises(UserError, match=r"claims\[0\].phase: no phase 'pretrian'.*pretrain"):
        load_recipe("recipes/scout", [claim])


def test_degrees_that_do_not_make_the_gpus_are_refused_by_phase() -> None:
    with pytest.raises(UserError, match=r"phase pretrain: .*needs 32768 GPUs, and 24576xh100-sxm has 24576"):
        plan_recipe(load_recipe("recipes/articles/behemoth-24k", ["gpus=24576xH100"]))


@pytest.mark.parametrize("name", shipped_of("recipe"))
def test_every_shipped_recipe_is_planned(name: str) -> None:
    answer = plan_recipe(load_recipe(name))
    assert answer.model_flops > 0
    assert answer.fits is not False or name.startswith("recipes/articles/")


def test_a_phase_that_does_not_fit_takes_no_time_and_costs_nothing_known() -> None:
    """`compare` and `sweep` show no times of what does not fit; 28.9M GPU-hours of such a run were none."""
    answer = plan_recipe(load_recipe("recipes/articles/behemoth-24k"), RecipeOptions(usd_per_gpu_hour=2.0))
    (phase,) = answer.phases
    assert answer.fits is False
    assert (phase.step_seconds, phase.gpu_hours, phase.usd, phase.utilization, phase.errors) == (
        None,
        None,
        None,
        None,
        (),
    )
    assert (answer.gpu_hours, answer.days, answer.usd, answer.energy_joules) == (None, None, None, None)
    assert phase.notes[0].startswith("the phase does not fit")
