"""Each number of a recipe's plan with its formula, source and error: phase by phase, then the sums."""

from collections.abc import Iterator
from dataclasses import dataclass

from l4spec.graph.build import mtp_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from l4spec.report.explain import flops_sums, parameter_sums
from l4spec.report.explain_times import step_sum, time_sections
from l4spec.report.latency import error_facts, kind_table
from l4spec.report.opened import opened
from l4spec.report.page import Block, Details, Facts, Lines, Section, Table
from l4spec.report.plan_page import fields_in_words, layout_in_words, verdict
from l4spec.report.quantities import Figures, amount, seconds, usd, whole
from l4spec.report.report_page import memory_terms
from l4spec.spec.recipe import Recipe
from planners.counts.mtp import count_mtp
from planners.device.training_state import OPTIMIZER_BYTES, WEIGHT_BYTES
from planners.plan_types import Plan
from planners.recipes.cost import HOURS_PER_DAY, SECONDS_PER_HOUR, PlannedRecipe
from planners.recipes.recipe_plan import PhasePlan

_JOULES_PER_MWH = 3.6e9
_SUM = "the sum of all phases"


@dataclass(frozen=True, slots=True)
class PhaseOrigins:
    """A phase, the plan of one of its steps, and its recipe."""

    phase: PhasePlan
    step: Plan
    recipe: Recipe

    @property
    def figures(self) -> Figures:
        """Number formats, with a mark for numbers that depend on estimated fields."""
        return Figures(bool(self.recipe.estimated or self.step.estimates.work))

    @property
    def source(self) -> str:
        """Sources of the recipe's own numbers."""
        return "the recipe: " + ("; ".join(self.recipe.sources) or "it names no source")

    @property
    def error(self) -> str:
        """Possible error of a number that follows from recipe and spec alone."""
        return unknown((*self.recipe.estimated, *self.step.estimates.work))

    @property
    def time_source(self) -> str:
        """Sources of the factors of times."""
        latency = self.step.latency
        if self.phase.step_seconds_source == "given utilization":
            return self.source
        if latency is None or not latency.sources:
            return "the peaks of the hardware's data sheet"
        return "; ".join(latency.sources)

    @property
    def time_error(self) -> str:
        """Possible error of times, and of numbers that follow from them."""
        fields = (*self.recipe.estimated, *self.step.estimates.work)
        beside = f"; besides {unknown(fields)}" if fields else ""
        if self.phase.step_seconds_source == "given utilization":
            return f"that of the given utilization{beside}"
        errors = () if self.step.latency is None else error_facts(self.step.latency)
        known = "; ".join(f"{label.removeprefix('error of ')}: {text}" for label, text in errors)
        return f"{known or 'unknown: nobody has published a measured row of this kind'}{beside}"


def unknown(fields: tuple[str, ...]) -> str:
    """The error of an exact sum over fields of which some may be estimated."""
    if fields:
        return f"unknown in what nobody has published, {fields_in_words(fields)}"
    return "none, counted exactly"


def recipe_sums(planned: PlannedRecipe, recipe: Recipe, graph: LayerGraph) -> Iterator[Section]:
    """A section for each phase, and one for the whole recipe; every number expands to its arithmetic."""
    for phase, step in zip(planned.cost.phases, planned.steps, strict=True):
        rest = PhaseOrigins(phase, step, recipe)
        yield Section(f"Every number of {phase.name}", tuple(_phase(rest, graph)))
    rest = PhaseOrigins(planned.cost.phases[0], planned.steps[0], recipe)
    yield Section("Every number of the whole", tuple(_whole(planned, rest, graph)))


def _phase(rest: PhaseOrigins, graph: LayerGraph) -> Iterator[Block]:
    phase, figures = rest.phase, rest.figures
    one_step = f"{whole(phase.batch)} sequences × {whole(phase.context)} tokens"
    given = unknown(rest.recipe.estimated)
    yield opened("tokens", figures.count(phase.tokens), "as the recipe says", rest.source, given)
    steps = f"{whole(phase.tokens)} tokens / ({one_step}), rounded"
    yield opened("steps", figures.whole(phase.steps), steps, rest.source, given)
    yield _flops(rest, graph, one_step)
    memory = verdict(rest.step).removeprefix(f"{rest.step.model} ")
    yield Details("memory", memory, (Facts((("layout", layout_in_words(rest.step)),)), *memory_terms(rest.step)))
    yield from _times(rest, one_step)
    yield from _costs(rest)
    yield _checkpoint(rest, graph)


def _flops(rest: PhaseOrigins, graph: LayerGraph, one_step: str) -> Details:
    """FLOPs of all steps; the forward pass term by term."""
    phase = rest.phase
    per_step = round(phase.model_flops * phase.batch * phase.context / phase.tokens)
    passes = "3 × the forward pass below (forward, gradients of inputs, gradients of weights)"
    if phase.trainable or phase.tiles_per_step:
        passes = (
            "the forward pass once, again for gradients of inputs where an earlier layer is trained, and again for "
            f"gradients of weights that are trained; {whole(phase.tiles_per_step)} image tiles per step in the tower"
        )
    module = mtp_graph(graph) if phase.num_modules else None
    passes += "" if module is None else f"; and so each of {phase.num_modules} modules of multi-token prediction"
    formula = f"{rest.figures.flops(per_step)} a step × {whole(phase.tokens)} / ({one_step}); a step: {passes}"
    work, head = Work(phase.batch, phase.context, phase="train"), "arithmetic of the forward pass of a step"
    tables = [Table(("layers", head, "FLOPs"), tuple(flops_sums(graph, work, text_only=True)), "ll")]
    if module is not None:
        tables.append(Table(("layers of a module", head, "FLOPs"), tuple(flops_sums(module, work)), "ll"))
    source = "the spec: " + ("; ".join(graph.model.spec.sources) or "it names no source")
    return opened("FLOPs", _huge(phase.model_flops, rest.figures), formula, source, rest.error, *tables)


def _times(rest: PhaseOrigins, one_step: str) -> Iterator[Block]:
    """The step and its rates; nothing if no time is known."""
    phase, figures = rest.phase, rest.figures
    if phase.step_seconds is None or phase.num_gpus is None:
        return
    shown = seconds(phase.step_seconds)
    yield opened("step", figures.seconds(phase.step_seconds), *_step(rest), *_parts(rest))
    if phase.tokens_per_second is not None:
        rate = f"{figures.mark}{phase.tokens_per_second:,.0f} tokens/s"
        yield opened("speed", rate, f"{one_step} / {shown}", rest.time_source, rest.time_error)
    if phase.flops_per_second_per_gpu is not None:
        flops = f"{figures.mark}{phase.flops_per_second_per_gpu / 1e12:,.0f} TFLOP/s"
        formula = f"FLOPs of a step / {shown} / {whole(phase.num_gpus)} GPUs"
        yield opened("rate of a GPU", flops, formula, rest.time_source, rest.time_error)


def _step(rest: PhaseOrigins) -> tuple[str, str, str]:
    """Formula, source and error of a step's time."""
    phase, latency = rest.phase, rest.step.latency
    if phase.rl is not None:
        rl = phase.rl
        formula = (
            f"simulated update by update, {rl.mode}: {rl.generation_gpus:,} GPUs generate {rl.answers:,} answers a "
            f"step, {rl.training_gpus:,} train; in turns {seconds(rl.synchronous_seconds)}"
        )
        return formula, rest.time_source, f"of the update alone: {rest.time_error}"
    if phase.step_seconds_source == "given utilization" and phase.utilization and phase.flops_per_second_per_gpu:
        peak = phase.flops_per_second_per_gpu / phase.utilization / 1e12
        formula = f"FLOPs of a step / {phase.num_gpus:,} GPUs / ({peak:,.0f} TFLOP/s × {phase.utilization:.3g})"
        return formula, rest.time_source, rest.time_error
    planned = latency.train if latency is not None else None
    formula = (
        step_sum(planned, latency.step_time_seconds or 0.0) if latency is not None and planned is not None else "-"
    )
    if phase.trainable or phase.tiles_per_step or phase.num_modules:
        formula += "; times FLOPs of this step over those of a step that trains the whole language model"
    return formula, rest.time_source, rest.time_error


def _parts(rest: PhaseOrigins) -> Iterator[Block]:
    """A planned step by kind of layer, and the arithmetic of its rates."""
    latency = rest.step.latency
    if latency is not None and latency.train is not None and rest.phase.step_seconds_source == "estimate":
        yield kind_table(latency.train, rest.figures)
    if latency is not None and latency.step_time_seconds == rest.phase.step_seconds:
        yield from (block for section in time_sections(rest.step) for block in section.blocks)


def _costs(rest: PhaseOrigins) -> Iterator[Block]:
    """GPU-hours and the quantities computed from them."""
    phase, mark = rest.phase, rest.figures.mark
    if phase.gpu_hours is None or phase.step_seconds is None or phase.num_gpus is None:
        return
    steps = phase.tokens / (phase.batch * phase.context)
    hours, gpus = f"{amount(phase.gpu_hours)} GPU-hours", f"{whole(phase.num_gpus)} GPUs"
    formula = f"{seconds(phase.step_seconds)} × {steps:,.1f} steps × {gpus} / {whole(SECONDS_PER_HOUR)} s"
    teacher = phase.teacher
    if teacher is not None and teacher.gpu_hours is not None:
        formula += f" + {amount(teacher.gpu_hours)} GPU-hours of {teacher.teacher}'s passes"
    reference = None if phase.reference is None or phase.reference.in_step else phase.reference
    if reference is not None and reference.gpu_hours is not None:
        formula += f" + {amount(reference.gpu_hours)} GPU-hours of the reference model's passes"
    yield opened("GPU-hours", f"{mark}{amount(phase.gpu_hours)}", formula, rest.time_source, rest.time_error)
    if teacher is not None and teacher.gpu_hours is not None:
        charged = (
            f"{teacher.flops:.3g} FLOPs forward × (1 - {teacher.in_training:g} in its own training) / "
            f"{teacher.students} students, at the student's rate of a GPU"
        )
        value = f"{mark}{amount(teacher.gpu_hours)} GPU-hours"
        yield opened("teacher passes", value, charged, rest.source, rest.time_error)
    if reference is not None and reference.gpu_hours is not None:
        passes = f"{reference.flops:.3g} FLOPs of a forward pass over each batch, at the update's rate of a GPU"
        value = f"{mark}{amount(reference.gpu_hours)} GPU-hours"
        yield opened("reference passes", value, passes, rest.source, rest.time_error)
    if phase.days is not None:
        formula = f"{hours} / {gpus} / {HOURS_PER_DAY}"
        yield opened("days", f"{mark}{amount(phase.days)}", formula, rest.time_source, rest.time_error)
    if phase.usd is not None:
        formula = f"{hours} × {usd(phase.usd / phase.gpu_hours)}"
        yield opened("cost", f"{mark}{usd(phase.usd)}", formula, "the price that was given", rest.time_error)
    if phase.energy_joules is not None:
        formula = f"{hours} × {rest.recipe.watts_per_gpu:g} W of a GPU, without hosts, network and cooling"
        value = f"{mark}{amount(phase.energy_joules / _JOULES_PER_MWH)} MWh"
        yield opened("energy", value, formula, rest.source, rest.time_error)


def _checkpoint(rest: PhaseOrigins, graph: LayerGraph) -> Details:
    phase, optimizer, modules = rest.phase, rest.step.deployment.optimizer, count_mtp(graph)
    total = rest.step.params.total + (modules.own if modules is not None and rest.phase.num_modules else 0)
    assert optimizer is not None, "phases are trained"
    state = OPTIMIZER_BYTES[optimizer]
    trained = (phase.checkpoint_bytes - WEIGHT_BYTES * total) // state
    formula = (
        f"{WEIGHT_BYTES} B of bf16 × {whole(total)} parameters + "
        f"{state} B of {optimizer} × {whole(trained)} that are trained"
    )
    return opened("checkpoint", rest.figures.gib(phase.checkpoint_bytes), formula, rest.source, rest.error)


def _whole(planned: PlannedRecipe, rest: PhaseOrigins, graph: LayerGraph) -> Iterator[Block]:
    """Parameters, and sums over phases."""
    cost, figures = planned.cost, rest.figures
    parts = Table(("part", "layers", "arithmetic", "parameters"), tuple(parameter_sums(graph)), "lll")
    value = f"{figures.count(cost.total_params)}, {figures.count(cost.active_params)} active per token"
    source = "the spec: " + ("; ".join(graph.model.spec.sources) or "it names no source")
    yield opened("parameters", value, "counted, part by part", source, unknown(rest.step.estimates.params), parts)
    sums = (
        ("tokens", figures.count(cost.tokens), [figures.count(one.tokens) for one in cost.phases]),
        ("FLOPs", _huge(cost.model_flops, figures), [_huge(one.model_flops, figures) for one in cost.phases]),
        ("GPU-hours", *_sum(cost.gpu_hours, [one.gpu_hours for one in cost.phases], 1.0)),
        ("days", *_sum(cost.days, [one.days for one in cost.phases], 1.0)),
        ("cost", *_sum(cost.usd, [one.usd for one in cost.phases], 1.0, "$")),
        (
            "energy",
            *_sum(cost.energy_joules, [one.energy_joules for one in cost.phases], _JOULES_PER_MWH, "", " MWh"),
        ),
    )
    for label, shown, terms in sums:
        if shown:
            formula = " + ".join(terms) if len(terms) > 1 else f"the one phase, {cost.phases[0].name}"
            yield opened(label, shown, formula, _SUM, "those of the phases, above")
    fields = (*rest.recipe.estimated, *rest.step.estimated)
    if fields:
        yield Details("estimated", f"{len(fields)} fields that nobody has published", (Lines((", ".join(fields),)),))


def _huge(flops: int, figures: Figures) -> str:
    """FLOPs of a whole training, for which no unit is in use."""
    return f"{figures.mark}{flops:.2e} FLOPs"


def _sum(
    total: float | None, terms: list[float | None], unit: float, before: str = "", after: str = ""
) -> tuple[str, list[str]]:
    """A sum and its terms in a unit; empty if a term is not known."""
    if total is None:
        return "", []
    shown = [f"{before}{amount((value or 0.0) / unit)}{after}" for value in (total, *terms)]
    return shown[0], shown[1:]


__all__ = ["PhaseOrigins", "recipe_sums"]
