"""The frozen reference of DPO, and of RL with a KL: its passes are those of a run, in FLOPs, hours and bytes."""

from pathlib import Path

import pytest
from torch import nn

import l4spec
from l4spec.layers.common.checkpointing import CHECKPOINTING
from l4spec.layers.declaration import Work
from l4spec.library import shipped_specs
from l4spec.report.document_reports import recipe_report
from l4spec.report.page import to_text
from l4spec.report.recipe_page import recipe_page
from l4spec.runtime.measure.flops import counting_flops
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.load import LoadedRecipe, load_recipe
from l4spec.training.loop import LoopSettings, train_steps
from l4spec.training.optimizer import make_optimizer
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.phases import prepare
from l4spec.training.recipe.worker import RecipeRun
from planners.catalog import quantization
from planners.counts.flops import model_flops
from planners.counts.params import count_params
from planners.counts.weights import scheme_of
from planners.device.activations import activation_rates, serving_bytes
from planners.device.stages import stages
from planners.device.training_state import TrainSetting, stage_state
from planners.module.executed import executed_flops
from planners.recipes.cost import RecipeOptions, graph_of, plan_recipe, planned_recipe

PAIRS = """\
l4spec: 1
kind: recipe
name: pairs
model: tiny/router-softmax
data: {sources: {sums: {kind: synthetic, task: arithmetic}}}
phases:
  - {name: only, kind: KIND, tokens: TOKENS, context: CONTEXT, batch: 8, optimizer: {learning_rate: 0.001}MORE}
"""
MORE = {
    "sft": "",
    "dpo": "",
    "rl": ", group: 4, max_answer: 6",
    "rl with a KL": ", group: 4, max_answer: 6, kl_weight: 0.1, iterations: 2",
    "rl with rollouts": ", group: 4, max_answer: 6, kl_weight: 0.1, rollouts: {prompt: 16, generation_share: 0.5}",
}


def written(folder: Path, kind: str, *, tokens: int = 51200, context: int = 64) -> Path:
    path = folder / f"{kind.replace(' ', '-')}-{context}.yaml"
    text = PAIRS.replace("KIND", kind.partition(" ")[0]).replace("MORE", MORE[kind])
    path.write_text(text.replace("TOKENS", f"{tokens}").replace("CONTEXT", f"{context}"))
    return path


def recipe(folder: Path, kind: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(written(folder, kind), overrides)


def test_flops_of_a_step_of_dpo_are_counted_ones(tmp_path: Path) -> None:
    """A step as it is trained, the reference's pass in it, on rows as long as its longest pair."""
    run = RecipeRun(RecipeJob(str(written(tmp_path, "dpo")), Layout()), lambda line: None)
    (phase,), graph = run.job.phases, run.job.graph
    prepared = prepare(run.context(phase))
    width = prepared.batch_of(0).input_ids.shape[1]
    optimizer = make_optimizer(run.model, phase.optimizer)
    with counting_flops(nn.Module()) as counted:
        steps = train_steps(run.model, optimizer, prepared.batch_of, LoopSettings(1), objective=prepared.objective)
        assert len(list(steps)) == 1
    train, forward = Work(8, width, phase="train"), Work(8, width)
    executed = executed_flops(graph, train), executed_flops(graph, forward)
    assert sum(counted.values()) == sum(executed)
    masked = sum(executed) - 4 * model_flops(graph, train)  # pairs of a block that the mask leaves out
    (planned,) = plan_recipe(load_recipe(written(tmp_path, "dpo", tokens=8 * width, context=width))).phases
    assert planned.reference is not None
    assert planned.model_flops + planned.reference.flops == sum(counted.values()) - masked


@pytest.mark.parametrize(("kind", "share"), [("dpo", 1 / 3), ("rl with a KL", 1 / 6), ("rl with rollouts", 1 / 3)])
def test_a_reference_runs_forward_over_every_batch(kind: str, share: float, tmp_path: Path) -> None:
    """A third of an update, which is forward and twice backward; once for all updates on a batch of answers."""
    (phase,) = plan_recipe(recipe(tmp_path, kind), RecipeOptions("8xH100")).phases
    assert phase.reference is not None
    assert phase.reference.flops == pytest.approx(share * phase.model_flops)


def test_hours_have_the_reference_s_passes_once(tmp_path: Path) -> None:
    """At the rate of the update; where `rollouts` plan the step its passes are in that."""
    for kind in ("dpo", "rl with a KL"):
        (phase,) = plan_recipe(recipe(tmp_path, kind), RecipeOptions("8xH100", 2.0)).phases
        assert phase.reference is not None
        assert phase.step_seconds is not None
        assert phase.gpu_hours is not None
        update = phase.step_seconds * phase.tokens / (phase.batch * phase.context) * 8 / 3600
        share = phase.reference.flops / phase.model_flops
        assert phase.reference.gpu_hours == pytest.approx(share * update)
        assert phase.gpu_hours == pytest.approx((1 + share) * update)
        assert phase.usd == pytest.approx(2 * phase.gpu_hours)
    (online,) = plan_recipe(recipe(tmp_path, "rl with rollouts"), RecipeOptions("8xH100")).phases
    assert online.reference is not None
    assert online.reference.in_step
    assert online.step_seconds is not None
    steps = online.tokens / (online.batch * online.context)
    assert online.gpu_hours == pytest.approx(online.step_seconds * steps * 8 / 3600)


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_other_phases_have_none(kind: str, tmp_path: Path) -> None:
    planned = planned_recipe(recipe(tmp_path, kind), RecipeOptions("8xH100"))
    assert planned.cost.phases[0].reference is None
    assert "reference weights" not in {term.name for term in planned.steps[0].memory_per_device.terms}


@pytest.mark.parametrize(("layout", "shared"), [("{dp: 8}", 1), ("{dp: 8, zero_stage: 3}", 8), ("{ep: 2, dp: 4}", 1)])
def test_the_reference_s_weights_lie_beside_the_model_s(layout: str, shared: int, tmp_path: Path) -> None:
    loaded = recipe(tmp_path, "dpo", f"phases.0.layout={layout}")
    planned = planned_recipe(loaded, RecipeOptions("8xH100"))
    (phase,), (step,) = planned.cost.phases, planned.steps
    memory, terms = step.memory_per_device, {term.name: term.bytes for term in step.memory_per_device.terms}
    assert phase.reference is not None
    assert phase.reference.weights_bytes == terms["reference weights"] == terms["weights"]
    assert memory.weights_bytes == 2 * terms["weights"]
    assert sum(terms.values()) == memory.total_bytes
    params = count_params(graph_of(loaded))
    experts = params.by_part["routed_experts"] // (2 if "ep" in layout else 1)
    assert terms["weights"] == pytest.approx(
        2 * (params.total - params.by_part["routed_experts"] + experts) / shared, 8
    )


def test_a_forward_pass_takes_no_more_activations_than_an_update() -> None:
    """So that the peak of a GPU is the update's, whatever is checkpointed: of every shipped model."""
    for name in shipped_specs():
        graph = l4spec.compile(l4spec.load(name))
        rates = activation_rates(graph, 1, 1)
        forward = serving_bytes(rates, chunk_tokens=64, sequences=64, num_tiles=0)
        (stage,) = stages(graph, scheme_of(quantization("bf16")), 1, 1, 1)
        for kind in CHECKPOINTING:
            update = stage_state(graph, TrainSetting(checkpointing=kind), Layout(), stage).with_batch(64, 1)
            assert forward <= update.activations, (name, kind)


def test_a_report_names_the_reference(tmp_path: Path) -> None:
    loaded, options = recipe(tmp_path, "dpo"), RecipeOptions("8xH100")
    planned = planned_recipe(loaded, options)
    assert "Passes of the reference model" in to_text(recipe_page(planned.cost))
    text = to_text(recipe_report(planned, loaded, graph_of(loaded)))
    assert "GPU-hours of the reference model's passes" in text
    assert "reference weights" in text


def test_the_reference_of_a_run_has_the_weights_that_are_planned(tmp_path: Path) -> None:
    """Loaded once, whole on one rank, without gradients; it is what the model was when it entered."""
    run = RecipeRun(RecipeJob(str(written(tmp_path, "dpo")), Layout()), lambda line: None)
    context = run.context(run.job.phases[0])
    reference = context.reference
    assert reference is context.reference
    assert reference is not run.model
    in_run = sum(parameter.numel() for parameter in reference.parameters())
    graph = l4spec.compile(l4spec.load("tiny/router-softmax"))
    (phase,) = plan_recipe(recipe(tmp_path, "dpo")).phases
    assert phase.reference is not None
    assert phase.reference.weights_bytes == 2 * in_run == 2 * count_params(graph).total
    prepare(context).batch_of(0)
    assert all(parameter.grad is None for parameter in reference.parameters())
