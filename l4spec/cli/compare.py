"""`l4spec compare`: models side by side."""

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import deliver
from l4spec.cli.request import PlanRequest, compiled
from l4spec.errors import Problem, UserError


@app.command("compare")
def compare_command(
    ctx: typer.Context,
    specs: o.SpecsArgument,
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
    overrides: o.SetOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Plan several models the same way and put them side by side; --set applies to each of them."""
    from l4spec.report.compare import compare, compare_page
    from l4spec.report.page import to_markdown, to_text

    request, pairs = PlanRequest.of(ctx), []
    for spec in specs:
        graph = compiled(spec, overrides)
        try:
            pairs.append((graph, request.plan(graph)))
        except UserError as error:
            raise UserError([Problem(f"{spec}: {problem}") for problem in error.problems]) from None
    comparison = compare(pairs)
    if format is o.Format.JSON:
        text = comparison.model_dump_json(indent=2)
    else:
        page = compare_page(comparison)
        text = to_markdown(page) if format is o.Format.MARKDOWN else to_text(page)
    deliver(text, out, force=force)
