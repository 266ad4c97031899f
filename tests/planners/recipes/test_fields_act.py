"""Every field of a phase changes the plan, or is listed here as one that cannot: none is ignored in silence."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from l4spec.spec.document import read_text
from l4spec.spec.document_kinds import parse_as
from l4spec.spec.recipe import Phase, Recipe
from l4spec.spec.recipe.load import LoadedRecipe
from l4spec.spec.recipe.phase import LayoutSpec, OptimizerSpec
from l4spec.spec.recipe.precision import Fp8Spec
from l4spec.spec.recipe.rollouts import RolloutSpec
from planners.recipes.cost import planned_recipe

HEAD = """\
l4spec: 1
kind: recipe
name: fields
model: {model}
gpus: 64xB200
watts_per_gpu: 700
data:
  sources:
    text: {{kind: described, description: words}}
    seen: {{kind: described, description: words and images, image_share: 0.2}}
teachers: {{small: {{model: tiny/scout}}, wide: {{model: compare/llama-3.1-8b}}}}
phases:
  - {phase}
"""
COMMON: dict[str, Any] = {
    "name": "it",
    "tokens": 10**10,
    "context": 4096,
    "batch": 256,
    "optimizer": {"learning_rate": 0.001},
    "layout": {"tp": 4, "ep": 2, "pp": 1, "dp": 8},
}
OWN: dict[str, dict[str, Any]] = {
    "pretrain": {},
    "midtrain": {},
    "distill": {"teacher": "small"},
    "sft": {},
    "rl": {
        "batch": 64,
        "max_answer": 64,
        "rollouts": {"prompt": 256, "slots": 4, "spread": 0.5, "generation_share": 0.5},
    },
    "dpo": {},
}
CHANGED: dict[str, Any] = {
    "tokens": 2 * 10**10,
    "context": 2048,
    "batch": 512,
    "micro_batch": 2,
    "optimizer": {"learning_rate": 0.001, "kind": "sgd"},
    "precision": "fp8",
    "layout.tp": 8,
    "layout.ep": 4,
    "layout.pp": 2,
    "layout.dp": 4,
    "layout.cp": 2,
    "layout.virtual_stages": 2,
    "layout.zero_stage": 2,
    "layout.checkpointing": "none",
    "layout.sequence_parallel": True,
    "trainable": ["text.layers.*.attention"],
    "mixture": {"text": 1.0},
    "gpus": "128xB200",
    "utilization": 0.4,
    "precision.matmuls": "fp8-experts",
    "precision.scaling": "blockwise",
    "precision.gradients": "e4m3",
    "mtp": {"weight": 0.3},
    "teacher": "wide",
    "top_k": 8,
    "drop_easy": 0.5,
    "max_answer": 128,
    "kl_weight": 0.1,
    "iterations": 4,
    "rollouts": None,
    "rollouts.mode": "synchronous",
    "rollouts.staleness": 4.0,
    "rollouts.partial": False,
    "rollouts.in_order": True,
    "rollouts.generation_share": 0.25,
    "rollouts.gpus_per_replica": 8,
    "rollouts.slots": 1,
    "rollouts.quantization": "fp8",
    "rollouts.prompt": 8192,
    "rollouts.mean_answer": 8,
    "rollouts.spread": 1.5,
    "rollouts.chunks": 4,
}
UNPLANNED: dict[str, str] = {
    "name": "a name",
    "kind": "what a phase is",
    "optimizer.learning_rate": "what is learned, not what it costs",
    "optimizer.betas": "what is learned",
    "optimizer.eps": "what is learned",
    "optimizer.weight_decay": "what is learned: a product a parameter and step",
    "optimizer.clip": "what is learned: the norm of gradients is in no plan",
    "schedule": "what is learned",
    "divergence": "what is learned: as many FLOPs",
    "soft_weight": "what is learned",
    "weighting": "what is learned",
    "temperature": "what is learned",
    "algorithm": "what is learned: advantages of answers that are drawn alike",
    "group": "which prompts answers share: prompts are taken as read",
    "clip_low": "what is learned",
    "clip_high": "what is learned",
    "beta": "what is learned",
    "rollouts.actors": "processes of a run",
}
PARTS: dict[str, Any] = {
    "optimizer": OptimizerSpec,
    "layout": LayoutSpec,
    "precision": Fp8Spec,
    "rollouts": RolloutSpec,
}


def fields_of(kind: str) -> set[str]:
    """Paths of the fields of a phase, those of its parts one by one."""
    (phase,) = (one for one in get_args(get_args(Phase)[0]) if kind in get_args(one.model_fields["kind"].annotation))
    paths = set()
    for name in phase.model_fields:
        inner = [each for each in PARTS[name].model_fields if each != "kind"] if name in PARTS else []
        paths |= {f"{name}.{each}" for each in inner} | {name}
    return paths - {"layout"}


def planned(kind: str, changes: dict[str, Any], model: str = "scout") -> tuple[Any, ...]:
    """What is planned of a phase of this kind, the name of its precision left out."""
    phase = {"kind": kind, **COMMON, **OWN[kind], **changes}
    document = read_text(HEAD.format(model=model, phase=json.dumps(phase)), "fields.yaml")
    made = planned_recipe(LoadedRecipe(parse_as(document, Recipe), document, Path()))
    (phase_plan,), (step,) = made.cost.phases, made.steps
    return phase_plan.model_dump(exclude={"errors", "precision", "trainable"}), step.memory_per_device


def changes_of(kind: str, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A phase before and after a change of one field; degrees that must follow it are left open in both."""
    part, _, name = path.partition(".")
    if part == "layout":
        open_degrees = {"tp": "dp", "ep": "dp", "pp": "dp", "dp": "ep", "cp": "dp", "virtual_stages": "dp"}
        layout = {axis: n for axis, n in COMMON["layout"].items() if axis != open_degrees.get(name)}
        if name == "virtual_stages":  # they need a pipeline
            layout |= {"pp": 2}
            return {"layout": layout}, {"layout": {**layout, name: CHANGED[path]}}
        return {}, {"layout": {**layout, name: CHANGED[path]}}
    if part == "precision" and name:
        return {"precision": "fp8"}, {"precision": {"kind": "fp8", name: CHANGED[path]}}
    if part == "gpus":
        return {}, {"gpus": CHANGED[path], "layout": {"tp": 4, "ep": 2, "pp": 1}}
    if name:
        return {}, {part: {**OWN[kind].get(part, COMMON.get(part, {})), name: CHANGED[path]}}
    return {}, {part: CHANGED[path]}


@pytest.mark.parametrize("kind", [*sorted(set(OWN) - {"rl"}), pytest.param("rl", marks=pytest.mark.slow)])
def test_every_field_of_a_phase_changes_its_plan_or_is_listed(kind: str) -> None:
    for path in sorted(fields_of(kind)):
        if path in UNPLANNED or path.partition(".")[0] in UNPLANNED:
            continue
        assert path in CHANGED, f"{path} is new: what of the plan does it change?"
        before, after = changes_of(kind, path)
        model = "compare/deepseek-v3" if path == "mtp" else "scout"
        assert planned(kind, before, model) != planned(kind, after, model), f"{path} of {kind} changes nothing"


@pytest.mark.parametrize("kind", sorted(OWN))
@pytest.mark.parametrize("factor", [2, 5])
def test_costs_are_proportional_to_tokens(kind: str, factor: int) -> None:
    one, more = (planned(kind, {"tokens": n * COMMON["tokens"]})[0] for n in (1, factor))
    for name in ("model_flops", "generated_flops", "gpu_hours", "days", "energy_joules"):
        assert more[name] == pytest.approx(factor * one[name]), name
    for name in ("step_seconds", "checkpoint_bytes", "tokens_per_second", "layout", "fits"):
        assert more[name] == one[name], name
