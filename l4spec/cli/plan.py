"""`l4spec plan`: what a model costs and whether it fits; without a spec, the herd."""

from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import DOES_NOT_FIT, app
from l4spec.cli.launch import launch
from l4spec.cli.output import deliver
from l4spec.cli.request import PlanRequest, compiled, given_options, option_name, options_named
from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph
    from planners.plan_types import Plan

OptionalSpec = Annotated[
    str | None,
    typer.Argument(metavar="SPEC", help="A path or a shipped name; left out: the herd.", show_default=False),
]
HERD = ("scout", "maverick", "behemoth")
HERD_GPUS = "8xH100"
_OF_HERD = {"gpus", "quantization", "kv_dtype", "context", "batch", "engine", "format", "out", "force"}
"""Options that mean something without a SPEC."""


@app.command("plan")
def plan_command(
    ctx: typer.Context,
    spec: OptionalSpec = None,
    gpus: o.GpusOption = None,
    quantization: o.QuantizationOption = None,
    kv_dtype: o.KvDtypeOption = "bf16",
    context: o.ContextOption = None,
    batch: o.BatchOption = 1,
    tp: o.TpOption = None,
    ep: o.EpOption = None,
    pp: o.PpOption = None,
    dp: o.DpOption = None,
    cp: o.CpOption = None,
    engine: o.EngineOption = "ideal",
    objective: o.ObjectiveOption = o.Objective.BALANCED,
    mode: o.ModeOption = o.Mode.SERVE,
    tiles: o.TilesOption = 0,
    images: o.ImagesOption = 0,
    memory_fraction: o.FractionOption = None,
    prefill_chunk: o.ChunkOption = 8192,
    optimizer: o.OptimizerOption = "adamw",
    zero_stage: o.ZeroOption = 1,
    checkpointing: o.CheckpointingOption = "full",
    micro_batch: o.MicroBatchOption = 1,
    precision: o.PrecisionOption = "bf16",
    output_tokens: o.OutputTokensOption = None,
    tokens: o.TrainTokensOption = None,
    usd_per_gpu_hour: o.PriceOption = None,
    routing: o.RoutingOption = None,
    overrides: o.SetOption = None,
    emit: o.EmitOption = None,
    model: o.ModelOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    verbose: o.VerboseOption = False,
    explain: o.ExplainOption = False,
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """What a model costs and whether it fits the hardware.

    Without SPEC: Scout, Maverick and Behemoth in one table, for each precision whether they fit, the longest context
    and the least number of GPUs. Exit code 3 when a spec does not fit. With --emit, an engine's launch instead, planned
    by its own cache policy unless --engine names another.
    """
    text, fits = _herd(ctx, format) if spec is None else _answer(ctx, compiled(spec, overrides))
    deliver(text, out, force=force)
    if not fits:
        raise typer.Exit(DOES_NOT_FIT)


def _answer(ctx: typer.Context, graph: "LayerGraph") -> tuple[str, bool]:
    """The report or the launch, and whether the plan fits (or nothing limits it)."""
    request, asked = PlanRequest.of(ctx), ctx.params
    if asked["emit"] is not None:
        return launch(ctx, request, graph), True
    if asked["model"] is not None:
        raise UserError([Problem("--model needs --emit", hint="it names the checkpoint that an engine loads")])
    planned = request.plan(graph)
    return _written(graph, planned, asked["format"], asked["verbose"], asked["explain"]), planned.fits is not False


def _written(graph: "LayerGraph", plan: "Plan", style: o.Format, verbose: bool, explain: bool) -> str:
    if style is o.Format.JSON:
        return plan.model_dump_json(indent=2)
    from l4spec.report.page import to_markdown, to_text
    from l4spec.report.plan_page import plan_page

    page = plan_page(plan, max_seq_len=graph.model.text.stack.width.max_seq_len)
    if verbose:
        from l4spec.report.plan_detail import detail_page

        page += detail_page(plan)
    if explain:
        from l4spec.report.explain import explain_page

        page += explain_page(graph, plan)
    return to_markdown(page) if style is o.Format.MARKDOWN else to_text(page)


def _refuse_others(ctx: typer.Context) -> None:
    """Raise UserError for options that are about one model: none is left aside silently."""
    alone = [name for name in given_options(ctx) if name not in _OF_HERD]
    if alone:
        hint = "without one, the herd is planned"
        raise UserError([Problem(f"{option_name(name)} needs a SPEC", hint=hint) for name in alone])


def _herd(ctx: typer.Context, style: o.Format) -> tuple[str, bool]:
    """The report on the shipped models, which nothing limits; raises UserError for options that are about one model."""
    request = PlanRequest.of(ctx)
    _refuse_others(ctx)
    from l4spec.report.model_table import PRECISIONS, Conditions, herd_page, plan_herd
    from l4spec.report.page import to_markdown, to_text

    asked = Conditions(request.gpus or HERD_GPUS, request.kv_dtype, request.context, request.batch, request.engine)
    precisions = PRECISIONS if request.quantization is None else (request.quantization,)
    with options_named():
        herd = plan_herd([compiled(name, ()) for name in HERD], asked, precisions)
    if style is o.Format.JSON:
        return herd.model_dump_json(indent=2), True
    return (to_markdown if style is o.Format.MARKDOWN else to_text)(herd_page(herd)), True
