"""Text and Markdown of `l4spec plan RECIPE` and `l4spec verify RECIPE`."""

from typing import TYPE_CHECKING

from l4spec.report import quantities
from l4spec.report.page import Lines, Page, Section, Table
from l4spec.units import gib

if TYPE_CHECKING:
    from collections.abc import Callable

    from l4spec.verification.recipe_claims import RecipeReport
    from planners.recipes.recipe_plan import PhasePlan, RecipePlan
    from planners.recipes.rl.rl_plan import RlPhasePlan

_JOULES_PER_MWH = 3.6e9


def recipe_page(answer: "RecipePlan") -> Page:
    """Report of a recipe: the cost of the training in one sentence, each phase, and exclusions."""
    headers = (
        "phase",
        "kind",
        "tokens",
        "context",
        "on",
        "layout",
        "step",
        "TFLOP/s/GPU",
        "GPU-hours",
        "days",
        "$",
        "MWh",
    )
    rows = [_phase_row(phase) for phase in answer.phases]
    rows.append(
        (
            "all",
            "",
            quantities.count(answer.tokens),
            "",
            "",
            "",
            "",
            "",
            *_costs(answer.gpu_hours, answer.days, answer.usd, answer.energy_joules),
        )
    )
    sections = [
        Section("", (Lines((_verdict(answer),)),)),
        Section("Phases", (Table(headers, tuple(rows), "llrrllrrrrrr"),)),
        Section("", (Lines(_facts(answer)),)),
    ]
    for title, line, is_there in _LINES:
        lines = tuple(line(phase) for phase in answer.phases if is_there(phase))
        if lines:
            sections.append(Section(title, (Lines(lines),)))
    sections += [_rollouts(phase.name, phase.rl) for phase in answer.phases if phase.rl is not None]
    notes = tuple(dict.fromkeys(f"{phase.name}: {note}" for phase in answer.phases for note in phase.notes))
    if notes:
        sections.append(Section("Notes", (Lines(notes),)))
    return tuple(sections)


def _verdict(answer: "RecipePlan") -> str:
    mark = " (estimated: " + ", ".join(answer.estimated) + ")" if answer.estimated else ""
    state = "does not fit" if answer.fits is False else "takes"
    if answer.fits is False:
        wrong = ", ".join(phase.name for phase in answer.phases if phase.fits is False)
        return f"{answer.recipe} {state}: {wrong}{mark}"
    hours = "unknown GPU-hours" if answer.gpu_hours is None else f"{quantities.amount(answer.gpu_hours)} GPU-hours"
    return f"{answer.recipe} of {answer.model} {state} {hours}{mark}"


def _phase_row(phase: "PhasePlan") -> tuple[str, ...]:
    rate = phase.flops_per_second_per_gpu
    return (
        phase.name,
        phase.kind,
        quantities.count(phase.tokens),
        f"{phase.context:,}",
        phase.gpus or "-",
        phase.layout + ("" if phase.fits is not False else " (does not fit)"),
        "-" if phase.step_seconds is None else quantities.seconds(phase.step_seconds),
        "-" if rate is None else quantities.amount(rate / 1e12),
        *_costs(phase.gpu_hours, phase.days, phase.usd, phase.energy_joules),
    )


def _costs(hours: float | None, days: float | None, usd: float | None, joules: float | None) -> tuple[str, ...]:
    return (
        "-" if hours is None else quantities.amount(hours),
        "-" if days is None else quantities.amount(days),
        "-" if usd is None else quantities.amount(usd),
        "-" if joules is None else quantities.amount(joules / _JOULES_PER_MWH),
    )


def _facts(answer: "RecipePlan") -> tuple[str, ...]:
    return (
        f"{quantities.count(answer.total_params)} parameters, {quantities.count(answer.active_params)} per token",
        f"{answer.model_flops:.2e} FLOPs of mathematics",
        f"a checkpoint holds {gib(answer.checkpoint_bytes)}: bf16 weights and the optimizer's state",
    )


def _fp8_line(phase: "PhasePlan") -> str:
    fp8 = phase.fp8
    assert fp8 is not None
    return (
        f"{phase.name}: {fp8.flops / phase.model_flops:.1%} of the FLOPs, {fp8.scaling}, gradients in {fp8.gradients}, "
        f"those that the scheme {fp8.matmuls} packs; weights cast to fp8 are {gib(fp8.weight_bytes)} in all, "
        f"one at a time: {gib(fp8.largest_bytes)} at most"
    )


def _module_line(phase: "PhasePlan") -> str:
    modules = "1 module" if phase.num_modules == 1 else f"{phase.num_modules} modules"
    return (
        f"{phase.name}: {modules} of {quantities.count(phase.module_params)} parameters; on a GPU of the last stage "
        f"{gib(phase.module_bytes)} of weights, gradients, optimizer states and activations"
    )


def _teacher_line(phase: "PhasePlan") -> str:
    teacher = phase.teacher
    assert teacher is not None
    charged = "unknown" if teacher.gpu_hours is None else f"{quantities.amount(teacher.gpu_hours)} GPU-hours"
    shared = f"{teacher.in_training:.0%} of them in its own training, the rest for {teacher.students} student(s)"
    return (
        f"{phase.name}: {teacher.teacher} runs {teacher.flops:.2e} FLOPs forward, {shared}: {charged} charged "
        f"here; its logits, kept: {gib(teacher.cache_bytes)}"
    )


def _reference_line(phase: "PhasePlan") -> str:
    reference = phase.reference
    assert reference is not None
    hours = (
        "unknown GPU-hours" if reference.gpu_hours is None else f"{quantities.amount(reference.gpu_hours)} GPU-hours"
    )
    charged = "part of the step" if reference.in_step else f"{hours} at the rate of the update"
    return (
        f"{phase.name}: {reference.flops:.2e} FLOPs forward, {charged}; its weights take "
        f"{gib(reference.weights_bytes)} of the fullest GPU"
    )


_LINES: tuple[tuple[str, "Callable[[PhasePlan], str]", "Callable[[PhasePlan], bool]"], ...] = (
    ("Matmuls in fp8", _fp8_line, lambda phase: phase.fp8 is not None),
    ("Multi-token prediction", _module_line, lambda phase: phase.num_modules > 0),
    ("Teacher passes", _teacher_line, lambda phase: phase.teacher is not None),
    ("Passes of the reference model", _reference_line, lambda phase: phase.reference is not None),
)
"""Sections with a line of each phase that has something of the kind."""


def _rollouts(name: str, rl: "RlPhasePlan") -> Section:
    """Generation of answers beside the learner, and the conditions under which asynchrony gains."""
    asynchronous = quantities.seconds(rl.asynchronous_seconds)
    lines = (
        f"{rl.answers:,} answers per step, replicas of {rl.gpus_per_replica} GPUs, at most {rl.slots} answers each",
        f"{rl.mode}: {rl.generation_gpus:,} GPUs generate ({rl.generating:.0%} of the time), "
        f"{rl.training_gpus:,} train ({rl.training:.0%})",
        f"staleness {rl.mean_staleness:.2f} updates in the mean, {rl.max_staleness} at most; "
        f"new weights take {quantities.seconds(rl.push_seconds)}",
        f"synchronous {quantities.seconds(rl.synchronous_seconds)} a step, asynchronous {asynchronous}: "
        f"{rl.speed_up:.1f} times as fast",
    )
    rows = tuple((one.name, f"{one.speed_up:.1f}") for one in rl.conditions)
    table = Table(("if", "asynchrony gains, times"), rows, "lr")
    return Section(f"Generation of {name}", (Lines(lines), table))


def recipe_claims_page(report: "RecipeReport") -> Page:
    """The verdict, then every claim."""
    failed = sum(not check.holds for check in report.checks)
    if not report.checks:
        return (Section("", (Lines((f"{report.recipe} makes no claims",)),)),)
    total = len(report.checks)
    sentence = f"{failed} of {total} claims do not hold" if failed else f"all {total} claims hold"
    headers = ("claim", "of", "claimed", "computed", "difference", "holds", "source")
    rows = tuple(
        (
            check.what.replace("_", " "),
            check.phase or "all phases",
            quantities.amount(check.claimed),
            ("~" if check.rests_on_estimates else "") + quantities.amount(check.computed),
            quantities.difference(check.difference),
            "yes" if check.holds else "NO",
            check.source,
        )
        for check in report.checks
    )
    return (
        Section("", (Lines((f"{report.recipe}: {sentence}",)),)),
        Section("", (Table(headers, rows, "llrrrll", 50),)),
    )
