"""What freezing saves and images cost in the plan of a recipe: counted FLOPs, no state of what is frozen, less time."""

from pathlib import Path

import pytest
import torch

import l4spec
from l4spec.errors import SpecError
from l4spec.graph.trainable import trained_names
from l4spec.layers.declaration import Work
from l4spec.library import shipped_of
from l4spec.runtime.measure.flops import counting_flops
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.load import LoadedRecipe, load_recipe
from planners.catalog import quantization
from planners.counts.cost_sheet import PassTokens, cost
from planners.counts.flops import count_flops
from planners.counts.params import count_params
from planners.counts.weights import scheme_of
from planners.device.stages import stages
from planners.device.training_state import TrainSetting, stage_state
from planners.recipes.cost import RecipeOptions, graph_of, plan_recipe
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


@pytest.mark.parametrize("name", [name for name in shipped_of("recipe") if not name.startswith("recipes/fusion")])
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
