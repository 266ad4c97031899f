"""A scenario's plan as a page: its servers' memory, its chain for one request alone, and the basis of the times."""

from typing import TYPE_CHECKING

from l4spec.report.page import Facts, Lines, Page, Section, Table
from l4spec.report.quantities import ESTIMATE_MARK, Figures, seconds, whole
from l4spec.units import gib

if TYPE_CHECKING:
    from planners.simulate.scenario_plan import ScenarioPlan, ServerPlan, StagePlan

_MEMORY = ("", "model", "GPUs", "layout", "weights in", "its own", "beside it", "cache", "of", "sequences")
ONE_ALONE = "One request alone, stage by stage"
_STAGES = ("stage", "by", "reads", "writes", "first token", "done after", "check", "refuses")


def scenario_page(plan: "ScenarioPlan") -> Page:
    """GPUs and price in one line, then servers, stages, and the notes."""
    figures = Figures(bool(plan.estimated))
    return (
        Section("", (Lines((headline(plan), *plan.misses)),)),
        Section(
            "Memory of the fullest GPU, and sequences of the mean request at a time",
            (Table(_MEMORY, tuple(map(_server_row, plan.servers)), "lllllrrrrr"),),
        ),
        Section(
            ONE_ALONE,
            (Table(_STAGES, tuple(_stage_row(stage, figures) for stage in plan.stages), "llrrrrlr"), _whole(plan)),
        ),
        Section("What the times rest on", (Lines(_basis(plan)),)),
    )


def headline(plan: "ScenarioPlan") -> str:
    """GPUs in all and their price."""
    price = "" if plan.usd_per_hour is None else f", ${plan.usd_per_hour:,.2f} an hour"
    many = "GPU" if plan.num_gpus == 1 else "GPUs"
    return f"{plan.scenario} fits on {whole(plan.num_gpus)} {many}{price}"


def _server_row(server: "ServerPlan") -> tuple[str, ...]:
    shared = "" if server.shares_gpus_with is None else f" (those of {server.shares_gpus_with})"
    return (
        server.key,
        server.model,
        f"{server.replicas} x {server.gpus}{shared}",
        server.layout,
        server.quantization,
        gib(server.own_bytes),
        gib(server.beside_bytes) if server.beside_bytes else "-",
        "-" if server.cache_bytes is None else gib(server.cache_bytes),
        "-" if server.capacity_bytes is None else gib(server.capacity_bytes),
        "-" if server.sequences is None else whole(server.sequences),
    )


def _stage_row(stage: "StagePlan", figures: Figures) -> tuple[str, ...]:
    refuses = f"{100 * stage.refusal_rate:.1f} %" if stage.refusal_rate else "-"
    if stage.model is None:
        return (stage.name, "given time", "-", "-", "-", figures.seconds(stage.seconds), stage.check, refuses)
    return (
        stage.name,
        stage.model,
        figures.whole(stage.prompt_tokens),
        figures.whole(stage.output_tokens),
        figures.seconds(stage.first_token_seconds),
        figures.seconds(stage.seconds),
        "-" if stage.answers else stage.check,
        refuses,
    )


def _whole(plan: "ScenarioPlan") -> Facts:
    mark = Figures(bool(plan.estimated)).mark
    return Facts(
        (
            ("mean request", f"{mark}{whole(plan.prompt_tokens)} tokens in, {whole(plan.output_tokens)} out"),
            ("TTFT", f"{mark}{seconds(plan.ttft_seconds)} alone, with nothing cached"),
            ("E2E", f"{mark}{seconds(plan.e2e_seconds)} alone"),
            ("answered", f"{mark}{100 * plan.answered:.1f} % of requests"),
        )
    )


def _basis(plan: "ScenarioPlan") -> tuple[str, ...]:
    lines = list(dict.fromkeys(line for server in plan.servers for line in server.basis))
    lines.append("one request alone, nothing cached: `l4spec simulate` adds the load of others")
    if plan.estimated:
        lines.append(f"{ESTIMATE_MARK} depends on fields that have not been published: {', '.join(plan.estimated)}")
    return tuple(lines)
