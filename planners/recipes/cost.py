"""From a recipe to its cost: each phase is a training plan with its own settings, multiplied by its steps.

Left out: failures and restarts, evaluation, writing checkpoints, reading data, the time in which RL draws its answers
without `rollouts`, and energy beyond the GPUs' own rated power.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from l4spec.errors import SpecError, UserError
from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.graph.trainable import selector_problems
from l4spec.graph.with_modules import with_modules
from l4spec.layers.declaration import Work
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe import Phase, Recipe
from l4spec.spec.recipe.load import LoadedRecipe
from l4spec.spec.recipe.phase import DistillPhase
from l4spec.spec.recipe.precision import written
from l4spec.spec.resolve import resolve
from planners.catalog.cluster import Cluster, parse_cluster
from planners.counts.flops import model_flops
from planners.counts.params import count_params
from planners.deployment import Deployment
from planners.device.memory import place
from planners.device.training_state import OPTIMIZER_BYTES, WEIGHT_BYTES
from planners.plan import plan_deployment
from planners.plan_types import Plan
from planners.recipes.fp8 import fp8_share
from planners.recipes.recipe_plan import PhasePlan, RecipePlan, ReferencePasses, TeacherPasses
from planners.recipes.reference import needs_reference, reference_passes
from planners.recipes.rl.rl_plan import RlPhasePlan
from planners.recipes.trained_work import (
    num_module_params,
    num_modules,
    num_trained,
    step_flops,
    tiles_of_step,
    trained_graph,
)
from planners.request import PlanRequest
from planners.timing.machine import Machine

StepSource = Literal["estimate", "given utilization"]
SECONDS_PER_HOUR, HOURS_PER_DAY = 3600, 24
_SCALED = (
    "frozen tensors and image tiles: FLOPs at the rate of the language model's own training, and no memory of the "
    "tower's activations"
)
_MODULES = (
    "modules of multi-token prediction: FLOPs at the rate of the language model's own training; `train` runs them "
    "without pipeline stages and sequence parallelism"
)
_TEACHER = (
    "the teacher's passes run at the student's FLOP/s, without images; its weights and activations are not in the "
    "memory of a GPU, and phases that train it are not in the hours"
)
_OPTIMIZERS = {"adamw": "adamw", "sgd": "sgd"}


@dataclass(frozen=True, slots=True)
class RecipeOptions:
    """Options that complete a recipe: GPUs of phases that name none, a price, a miniature."""

    gpus: str | None = None
    usd_per_gpu_hour: float | None = None
    scale: str | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedRecipe:
    """A recipe's cost, and the plan of one step of each phase, in order, that it is multiplied from."""

    cost: RecipePlan
    steps: tuple[Plan, ...]


def plan_recipe(loaded: LoadedRecipe, options: RecipeOptions | None = None) -> RecipePlan:
    """Cost of every phase, and of all. Raises UserError, naming the phase, for one that cannot be planned."""
    return planned_recipe(loaded, options).cost


def planned_recipe(loaded: LoadedRecipe, options: RecipeOptions | None = None) -> PlannedRecipe:
    """As `plan_recipe`, with the plans that the costs rest on."""
    asked, recipe = options or RecipeOptions(), loaded.recipe
    spec = loaded.model(asked.variant, asked.scale)
    graph = graph_of(loaded, asked)
    asked_phases = loaded.phases(asked.scale, spec)
    trained = with_modules(graph) if any(phase.modules is not None for phase in asked_phases) else graph
    problems = (*selector_problems(loaded, trained, asked_phases), *loaded.module_problems(spec, asked.scale))
    if problems:
        raise SpecError(problems)
    steps = tuple(_step(loaded.recipe, phase, graph, asked) for phase in asked_phases)
    phases = tuple(_phase(loaded, *pair, graph, asked) for pair in zip(asked_phases, steps, strict=True))
    counts = count_params(graph)
    cost = RecipePlan(
        recipe=recipe.name,
        model=graph.name,
        active_params=counts.active,
        total_params=counts.total,
        estimated=recipe.estimated,
        phases=phases,
        tokens=sum(phase.tokens for phase in phases),
        model_flops=sum(phase.model_flops for phase in phases),
        gpu_hours=_total(phase.gpu_hours for phase in phases),
        days=_total(phase.days for phase in phases),
        usd=_total(phase.usd for phase in phases),
        energy_joules=_total(phase.energy_joules for phase in phases),
        checkpoint_bytes=max(phase.checkpoint_bytes for phase in phases),
        fits=None if any(phase.fits is None for phase in phases) else all(phase.fits for phase in phases),
    )
    return PlannedRecipe(cost, steps)


def graph_of(loaded: LoadedRecipe, options: RecipeOptions | None = None) -> LayerGraph:
    """The model that a recipe trains."""
    asked = options or RecipeOptions()
    return build_graph(resolve(loaded.model(asked.variant, asked.scale)))


def _total(values: Iterable[float | None]) -> float | None:
    terms = list(values)
    known = [value for value in terms if value is not None]
    return sum(known) if len(known) == len(terms) else None


def request_of(phase: Phase, recipe: Recipe, gpus: str | None) -> PlanRequest:
    """The options of `l4spec plan --mode train` for a phase."""
    layout = phase.layout
    options: dict[str, object] = {
        "gpus": phase.gpus or gpus or recipe.gpus,
        "mode": "train",
        "context": phase.context,
        "batch": phase.batch,
        "micro_batch": phase.micro_batch,
        "precision": phase.precision.kind,
        "fp8_matmuls": None if phase.fp8 is None else phase.fp8.matmuls,
        "optimizer": _OPTIMIZERS[phase.optimizer.kind],
        "zero_stage": layout.zero_stage,
        "checkpointing": layout.checkpointing,
        "sequence_parallel": "on" if layout.sequence_parallel else "off",
        **{axis: getattr(layout, axis) for axis in ("tp", "ep", "pp", "dp", "cp", "virtual_stages")},
    }
    return PlanRequest.model_validate({name: value for name, value in options.items() if value is not None})


def _step(recipe: Recipe, phase: Phase, graph: LayerGraph, asked: RecipeOptions) -> Plan:
    """The plan of one training step of a phase."""
    try:
        return plan_deployment(_deployment(graph, request_of(phase, recipe, asked.gpus), phase))
    except UserError as error:
        raise UserError(f"phase {phase.name}: {error}") from None


def _phase(loaded: LoadedRecipe, phase: Phase, answer: Plan, graph: LayerGraph, asked: RecipeOptions) -> PhasePlan:
    recipe, request = loaded.recipe, request_of(phase, loaded.recipe, asked.gpus)
    cluster = None if request.gpus is None else parse_cluster(request.gpus)
    num_gpus, tiles = None if cluster is None else cluster.num_gpus, tiles_of_step(graph, recipe.data, phase)
    flops = step_flops(graph, phase, tiles)
    seconds, source = _step_seconds(phase, answer, cluster, flops)
    rollouts = _rollouts(phase, graph, request.gpus, seconds)
    if phase.kind == "rl" and rollouts is not None:
        seconds = rollouts.step_seconds / phase.iterations
    steps = phase.tokens / (phase.batch * phase.context)
    rate = _rate(flops, seconds, num_gpus)
    teacher, reference = _teacher(loaded, phase, asked, rate), reference_passes(phase, graph, rate, answer)
    update = None if seconds is None or num_gpus is None else seconds * steps * num_gpus / SECONDS_PER_HOUR
    hours = _total((update, *_hours_beside(teacher, reference)))
    return PhasePlan(
        name=phase.name,
        kind=phase.kind,
        trainable=phase.trainable,
        tiles_per_step=tiles,
        num_modules=num_modules(graph, phase),
        module_params=num_module_params(graph, phase),
        module_bytes=_module_bytes(_deployment(graph, request, phase), answer.layout),
        tokens=phase.tokens,
        steps=phase.num_steps,
        context=phase.context,
        batch=phase.batch,
        gpus=request.gpus,
        num_gpus=num_gpus,
        layout=str(answer.layout),
        fits=answer.fits,
        precision=written(phase.precision),
        model_flops=round(flops * steps),
        generated_flops=_generated(graph, phase, steps),
        step_seconds=seconds,
        step_seconds_source=source,
        tokens_per_second=None if seconds is None else phase.batch * phase.context / seconds,
        flops_per_second_per_gpu=rate,
        utilization=phase.utilization or (answer.latency.mfu if answer.latency and seconds is not None else None),
        gpu_hours=hours,
        days=None if hours is None or num_gpus is None else hours / num_gpus / HOURS_PER_DAY,
        usd=None if hours is None or asked.usd_per_gpu_hour is None else hours * asked.usd_per_gpu_hour,
        energy_joules=_energy(hours, recipe.watts_per_gpu),
        checkpoint_bytes=_checkpoint_bytes(graph, phase),
        teacher=teacher,
        reference=reference,
        errors=tuple(answer.latency.errors) if answer.latency and source == "estimate" else (),
        rl=rollouts,
        fp8=None if phase.fp8 is None else fp8_share(graph, phase.fp8, _work(phase), steps),
        notes=_notes(phase, answer, seconds, tiles) + (rollouts.notes if rollouts else ()),
    )


def _energy(gpu_hours: float | None, watts: float | None) -> float | None:
    return None if gpu_hours is None or watts is None else gpu_hours * SECONDS_PER_HOUR * watts


def _work(phase: Phase) -> Work:
    return Work(phase.batch, phase.context, phase="train")


def _deployment(graph: LayerGraph, request: PlanRequest, phase: Phase) -> Deployment:
    """Deployment of a phase, with its trained tensors: others have no gradients and no optimizer state."""
    made = Deployment.resolve(graph, request)
    train = made.setting.train
    assert train is not None, "phases are trained"
    train = replace(
        train, trainable=phase.trainable, with_modules=phase.modules is not None, with_reference=needs_reference(phase)
    )
    return made._replace(setting=made.setting._replace(train=train))


def _module_bytes(deployment: Deployment, layout: Layout) -> int:
    """Bytes that modules of multi-token prediction add on a device of the last stage."""
    setting, train = deployment.setting, deployment.setting.train
    if train is None or not train.with_modules:
        return 0
    without = setting._replace(train=replace(train, with_modules=False))
    whole, rest = (place(one, layout).uses(deployment.context, deployment.batch)[-1] for one in (setting, without))
    return whole.total - rest.total


def _rollouts(phase: Phase, graph: LayerGraph, gpus: str | None, seconds: float | None) -> RlPhasePlan | None:
    """Plan of an RL phase's rollouts, if it has any and its update has a known time."""
    if phase.kind != "rl" or phase.rollouts is None or gpus is None or seconds is None:
        return None
    from planners.recipes.rl.phase import plan_rl

    try:
        return plan_rl(phase, graph, gpus, seconds)
    except UserError as error:
        raise UserError(f"phase {phase.name}: {error}") from None


def _step_seconds(
    phase: Phase, answer: Plan, cluster: Cluster | None, flops: int
) -> tuple[float | None, StepSource | None]:
    """Seconds of a step: by the utilization that the phase gives, on any GPUs whose peak is published, or estimated.

    None without GPUs, where the phase does not fit, and without factors where no utilization is given.
    """
    latency = answer.latency
    if latency is None or cluster is None or answer.fits is False:
        return None, None
    peak = Machine(cluster.hardware, cluster.gpus_per_host).peak(phase.precision.kind)
    if phase.utilization is not None and peak is not None:
        return flops / (peak * phase.utilization) / cluster.num_gpus, "given utilization"
    if latency.step_time_seconds is None:
        return None, None
    more, after = flops / answer.flops.train_step, latency.after_passes_seconds or 0.0
    return latency.step_time_seconds + (more - 1) * (latency.step_time_seconds - after), "estimate"


def _checkpoint_bytes(graph: LayerGraph, phase: Phase) -> int:
    """Weights, and the optimizer's state of trained tensors."""
    graph = trained_graph(graph, phase)
    state = OPTIMIZER_BYTES[_OPTIMIZERS[phase.optimizer.kind]] * num_trained(graph, phase.trainable)
    return count_params(graph).total * WEIGHT_BYTES + state


def _rate(flops: int, seconds: float | None, num_gpus: int | None) -> float | None:
    return None if seconds is None or num_gpus is None else flops / seconds / num_gpus


def _teacher(loaded: LoadedRecipe, phase: Phase, asked: RecipeOptions, rate: float | None) -> TeacherPasses | None:
    """A teacher's forward passes over the phase's tokens, at the FLOP/s per GPU that the student reaches."""
    if phase.kind != "distill":
        return None
    teacher = loaded.recipe.teachers[phase.teacher]
    spec = loaded.spec_of(teacher.model, teacher.set, ("teachers", phase.teacher, "model"))
    graph = build_graph(resolve(loaded.scaled(spec, asked.scale)))
    step = model_flops(graph, _work(phase))
    flops = round(step * phase.tokens / (phase.batch * phase.context))
    charged = round(flops * (1 - teacher.in_training) / teacher.students)
    return TeacherPasses(
        teacher=graph.name,
        flops=flops,
        charged_flops=charged,
        students=teacher.students,
        in_training=teacher.in_training,
        gpu_hours=None if rate is None else charged / rate / SECONDS_PER_HOUR,
        cache_bytes=_cache_bytes(phase, graph.model.text.head.vocab_size),
    )


def _hours_beside(teacher: TeacherPasses | None, reference: ReferencePasses | None) -> Iterator[float | None]:
    """GPU-hours of passes that are no part of the planned step."""
    if teacher is not None:
        yield teacher.gpu_hours
    if reference is not None and not reference.in_step:
        yield reference.gpu_hours


def _cache_bytes(phase: DistillPhase, vocab_size: int) -> int:
    """Bytes of the logits that a run keeps of all steps: all in fp32, or the largest with their places."""
    top_k = None if phase.weighting == "dynamic" else phase.top_k
    of_token = 4 * vocab_size if top_k is None or top_k >= vocab_size else 8 * top_k
    return phase.num_steps * phase.batch * phase.context * of_token


def _generated(graph: LayerGraph, phase: Phase, steps: float) -> int:
    """FLOPs of the forward passes, attended pairs included, in which answers of an RL phase are drawn."""
    return round(model_flops(graph, _work(phase)) * steps / phase.iterations) if phase.kind == "rl" else 0


def _notes(phase: Phase, answer: Plan, seconds: float | None, tiles: int) -> tuple[str, ...]:
    latency = answer.latency
    notes = (*latency.cautions, *latency.notes) if latency else ("no GPUs were given: no time",)
    if answer.fits is False:
        notes = ("the phase does not fit, so that it takes no time", *notes)
    elif answer.latency is not None and seconds is None:
        notes = (answer.latency.reason or "no estimate of the step", *notes)
    if phase.kind == "rl" and phase.rollouts is None:
        notes = (*notes, "the time in which answers are drawn and scored is not in the hours: `rollouts` plans it")
    if phase.kind == "sft" and phase.drop_easy:
        notes = (*notes, "forward passes over the dialogues of which `drop_easy` drops some are not in the hours")
    if phase.kind == "distill":
        notes = (*notes, _TEACHER)
    if phase.trainable or tiles:
        notes = (*notes, _SCALED)
    if phase.modules is not None:
        notes = (*notes, _MODULES)
    return tuple(notes)
