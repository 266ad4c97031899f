"""What freezing saves and images cost in the plan of a recipe: counted FLOPs, no state of what is frozen, less time."""

from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch

import l4spec
from l4spec.errors import SpecError
from l4spec.graph.build import MTP_SHARED, mtp_graph
from l4spec.graph.trainable import trained_names
from l4spec.graph.with_modules import with_modules
from l4spec.layers.declaration import Matmul, Operation, Work
from l4spec.library import shipped_of
from l4spec.report.document_reports import recipe_report
from l4spec.report.page import to_text
from l4spec.runtime.measure.flops import counting_flops
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.mtp import MTPLoss
from l4spec.runtime.parallel.step import train_step
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.load import LoadedRecipe, load_recipe
from planners.catalog import quantization
from planners.counts.cost_sheet import CostRow, PassTokens, cost
from planners.counts.flops import count_flops, model_flops
from planners.counts.mtp import count_mtp
from planners.counts.params import count_params
from planners.counts.weights import scheme_of
from planners.device.stages import stages
from planners.device.training_state import OPTIMIZER_BYTES, TrainSetting, stage_state
from planners.module.executed import executed_flops
from planners.recipes.cost import PlannedRecipe, RecipeOptions, graph_of, plan_recipe, planned_recipe
from planners.recipes.trained_work import num_trained, step_flops, tiles_of_step

TWO = """\
l4spec: 1
kind: recipe
name: two
model: tiny/scout
data: {{sources: {{web: {{kind: described, description: pages, image_share: {share}}}}}}}
phases:
  - {{name: only, kind: pretrain, tokens: 51200, context: 64, batch: 8, trainable: {trainable},
     optimizer: {{learning_rate: 0.01}}}}
"""


def recipe(folder: Path, share: float = 0.25, trainable: str = "[]") -> LoadedRecipe:
    (folder / "two.yaml").write_text(TWO.format(share=share, trainable=trainable))
    return load_recipe(folder / "two.yaml")


@pytest.mark.parametrize(
    "name", [n for n in shipped_of("recipe") if not n.startswith(("recipes/fusion", "recipes/drafts"))]
)
def test_without_frozen_tensors_and_images_a_step_is_three_forward_passes(name: str) -> None:
    loaded = load_recipe(name)
    graph = graph_of(loaded)
    for phase in loaded.recipe.phases:
        assert tiles_of_step(graph, loaded.recipe.data, phase) == 0
        assert step_flops(graph, phase, 0) == count_flops(graph, context=phase.context, batch=phase.batch).train_step


@pytest.mark.parametrize("trainable", ["[vision]", "[text]"])
def test_what_freezing_saves_is_what_a_model_does_not_run(trainable: str, tmp_path: Path) -> None:
    whole, part = recipe(tmp_path), recipe(tmp_path, trainable=trainable)
    graph, tiles = graph_of(whole), 4
    planned = [step_flops(graph, loaded.recipe.phases[0], tiles) for loaded in (whole, part)]
    counted = [_counted(graph, loaded, tiles) for loaded in (whole, part)]
    again = _scores(graph, tiles) // 2 if trainable == "[text]" else 0  # flash attention's backward, arXiv:2205.14135
    assert planned[0] - planned[1] == counted[0] - counted[1] - again > 0


def _scores(graph: l4spec.LayerGraph, tiles: int) -> int:
    """FLOPs of the tower's attention scores and sums in a forward pass."""
    rows = cost(graph, PassTokens(Work(0, 0), tiles)).rows
    return sum(row.group.count * row.attention_flops for row in rows if row.group.first.scope == "vision")


def _counted(graph: l4spec.LayerGraph, loaded: LoadedRecipe, tiles: int) -> int:
    """FLOPs that the module runs, forward and backward, with what its phase freezes."""
    (phase,) = loaded.recipe.phases
    model = l4spec.build(graph).train()
    model.image_token_id = 300
    trained = trained_names(graph, phase.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    ids = torch.randint(257, (phase.batch, phase.context), generator=torch.Generator().manual_seed(0))
    ids[:tiles, : model.num_tokens_per_tile] = 300
    with counting_flops(model) as counted:
        torch.autograd.backward(model(ids, pixel_values=torch.zeros(tiles, 3, 28, 28)).sum())
    return sum(counted.values())


def test_a_phase_that_freezes_costs_less_and_images_cost_more(tmp_path: Path) -> None:
    def planned(**options: float | str) -> tuple[int, float, int]:
        answer = plan_recipe(recipe(tmp_path, **options), RecipeOptions("1xH100"))  # type: ignore[arg-type]  # drawn
        return answer.model_flops, answer.gpu_hours or 0.0, answer.checkpoint_bytes

    text, whole, tower = planned(share=0.0), planned(), planned(trainable="[vision]")
    assert text[0] < whole[0]
    assert text[1] < whole[1]
    assert tower[0] < whole[0]
    assert tower[1] < whole[1]
    assert tower[2] < whole[2]


def test_what_is_frozen_has_neither_gradients_nor_optimizer_state(tmp_path: Path) -> None:
    graph = graph_of(recipe(tmp_path))
    (one,) = stages(graph, scheme_of(quantization("bf16")), 1, 1, 1)
    whole, tower = (
        stage_state(graph, TrainSetting(trainable=trainable), Layout(), one).with_batch(64, 1)
        for trainable in ((), ("vision",))
    )
    assert whole.weights == tower.weights
    seen = count_params(graph).by_part
    number = seen["vision"] + seen["projector"]
    assert num_trained(graph, ("vision",)) == number
    assert (tower.gradients, tower.optimizer) == (4 * number, 12 * number)
    assert whole.optimizer == 12 * count_params(graph).total


def test_tiles_are_the_patches_among_the_tokens(tmp_path: Path) -> None:
    loaded = recipe(tmp_path)
    assert tiles_of_step(graph_of(loaded), loaded.recipe.data, loaded.recipe.phases[0]) == 8 * 64 * 0.25 / 4


def test_a_selector_that_names_nothing_is_refused_by_the_plan_too(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'vison'.*did you mean 'vision'"):
        plan_recipe(recipe(tmp_path, trainable="[vison]"))


SET_MODULES = ("set=['text.mtp={num_modules: 2, block: {attention: global, ffn: moe}}']",)
BF16 = scheme_of(quantization("bf16"))


def further(folder: Path, trainable: str = "[]", mtp: str = "") -> LoadedRecipe:
    """`recipe` without images, of a model with two modules of a mixture each."""
    loaded = recipe(folder, 0.0, trainable)
    return load_recipe(loaded.document.source, [*SET_MODULES, *([f"phases.0.mtp={mtp}"] if mtp else [])])


def test_modules_of_multi_token_prediction_add_their_passes(tmp_path: Path) -> None:
    """Three passes of each module over all tokens, head included; its head's weights once less where it is frozen."""
    graph, weight = graph_of(further(tmp_path)), "{weight: 0.3}"
    module, work = mtp_graph(graph), Work(8, 64, phase="train")
    assert module is not None
    main, own, head = model_flops(graph, work), model_flops(module, work), 2 * 8 * 64 * 80 * 512
    whole = [step_flops(graph, further(tmp_path, mtp=mtp).recipe.phases[0], 0) for mtp in ("", weight)]
    assert whole == [3 * main, 3 * main + 6 * own]
    alone = further(tmp_path, "[text.mtp]", weight).recipe.phases[0]
    assert step_flops(graph, alone, 0) == main + 2 * (3 * own - head)
    frozen = further(tmp_path, "[text.embedding, text.layers, text.norm, text.head]", weight).recipe.phases[0]
    linears = sum(op.flops for row in cost(module, PassTokens(work)).rows for op in row.operations if _is_own(row, op))
    assert step_flops(graph, frozen, 0) == 3 * main + 2 * (3 * own - linears)


def _is_own(row: CostRow, op: Operation) -> bool:
    return isinstance(op, Matmul) and row.group.first.role not in MTP_SHARED


def test_flops_and_parameters_of_modules_are_those_of_a_run(tmp_path: Path) -> None:
    """Forward and backward, with what a masked block of attention computes beyond the mask left out of both."""
    trained = further(tmp_path, mtp="{weight: 0.3}")
    graph, (phase,) = graph_of(trained), trained.recipe.phases
    module, work = mtp_graph(graph), Work(phase.batch, phase.context, phase="train")
    assert module is not None
    model = distribute(l4spec.build(with_modules(graph)), Layout(), train=True).train()
    ids = torch.randint(257, (phase.batch, phase.context), generator=torch.Generator().manual_seed(0))
    with counting_flops(model) as counted:
        train_step(model, ids, ids, num_microbatches=1, mtp=MTPLoss(0.3))
    executed = executed_flops(graph, work) + 2 * executed_flops(module, work)
    assert sum(counted.values()) == executed
    masked = executed - 3 * (model_flops(graph, work) + 2 * model_flops(module, work))
    (planned,) = plan_recipe(trained).phases
    assert planned.model_flops == (sum(counted.values()) - masked) * phase.num_steps
    in_run = sum(p.numel() for name, p in model.named_parameters() if name.startswith("text.mtp"))
    assert planned.module_params == in_run == num_trained(with_modules(graph), ("text.mtp",))


def after_and_step(plan: PlannedRecipe) -> tuple[float, float]:
    """Seconds after the passes and of the whole step of the first phase's plan."""
    latency = plan.steps[0].latency
    assert latency is not None
    return latency.after_passes_seconds or 0.0, latency.step_time_seconds or 0.0


def test_a_plan_counts_modules(tmp_path: Path) -> None:
    """FLOPs and hours in proportion; of checkpoint and GPU the state of what modules have of their own."""
    declared, options = further(tmp_path), RecipeOptions("8xH100")
    trained = further(tmp_path, mtp="{weight: 0.3}")
    plans = [planned_recipe(one, options) for one in (trained, declared)]
    ours, without = (plan.cost.phases[0] for plan in plans)
    counts = count_mtp(graph_of(trained))
    assert counts is not None
    more = ours.model_flops / without.model_flops
    assert more > 1
    (our_after, our_step), (after, step) = (after_and_step(plan) for plan in plans)
    assert our_after > after  # the optimizer of the modules' own parameters
    assert ours.gpu_hours == pytest.approx((without.gpu_hours or 0) * ((step - after) * more + our_after) / step)
    assert our_step == pytest.approx(step + our_after - after)  # the plan's step is of the model's passes alone
    state = OPTIMIZER_BYTES["adamw"]
    assert ours.checkpoint_bytes - without.checkpoint_bytes == (2 + state) * counts.own
    assert (ours.module_params, without.module_params, without.module_bytes) == (counts.own, 0, 0)
    text = to_text(recipe_report(planned_recipe(trained, options), trained, graph_of(trained)))
    assert "2 modules of multi-token prediction" in text
    assert "layers of a module" in text


@pytest.mark.parametrize("layout", ["{dp: 8}", "{ep: 2, dp: 4}", "{ep: 2, dp: 4, zero_stage: 3}"])
@pytest.mark.parametrize("trainable", ["[]", "[text.mtp]"])
def test_the_memory_of_a_gpu_has_the_modules(layout: str, trainable: str, tmp_path: Path) -> None:
    """By the same rule as in `tests/distributed/test_trained_modules.py`, in the plan's own terms."""
    trained = further(tmp_path, trainable, "{weight: 0.3}")
    loaded = load_recipe(
        trained.document.source, [*SET_MODULES, "phases.0.mtp={weight: 0.3}", f"phases.0.layout={layout}"]
    )
    planned = planned_recipe(loaded, RecipeOptions("8xH100"))
    (phase,), (step,) = planned.cost.phases, planned.steps
    memory, (one,) = step.memory_per_device, stages(graph_of(loaded), BF16, step.layout.tp, step.layout.ep, 1)
    train = TrainSetting(zero_stage=loaded.recipe.phases[0].layout.zero_stage, trainable=phase.trainable)
    main, both = (
        stage_state(graph_of(loaded), replace(train, with_modules=modules), step.layout, one).with_batch(64, 1)
        for modules in (False, True)
    )
    terms = (memory.weights_bytes, memory.gradient_bytes, memory.optimizer_bytes, memory.activation_bytes)
    assert terms == (both.weights, both.gradients, both.optimizer, both.activations)
    assert memory.gathered_bytes == both.gathered
    assert phase.module_bytes == sum(astuple(both)) - sum(astuple(main)) > 0


def test_a_plan_of_modules_that_are_not_declared_is_refused(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, 0.0)
    with pytest.raises(SpecError, match="tiny-scout declares no modules of multi-token prediction"):
        plan_recipe(load_recipe(loaded.document.source, ["phases.0.mtp={weight: 0.3}"]))
