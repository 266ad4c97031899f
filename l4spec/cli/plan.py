"""`l4spec plan`: cost and fit of a model; without a spec, all Llama 4 models in one table."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import DOES_NOT_FIT, app
from l4spec.cli.completion import specs
from l4spec.cli.generated import takes
from l4spec.cli.launch import launch
from l4spec.cli.other_documents import (
    kind_named,
    recipe_at,
    recipe_options,
    refuse_options_of_scenarios,
    scenario_at,
)
from l4spec.cli.output import deliver, write
from l4spec.cli.request import compiled, given_options, option_name
from l4spec.errors import Problem, UserError
from l4spec.options import flag_of
from planners.request import PlanRequest

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph
    from l4spec.report.page import Page
    from l4spec.spec.recipe.load import LoadedRecipe
    from l4spec.spec.scenario.references import LoadedScenario
    from planners.plan_types import Plan

OptionalSpec = Annotated[
    str | None,
    typer.Argument(
        metavar="SPEC",
        help="A path or a shipped name; by default all Llama 4 models.",
        show_default=False,
        autocompletion=specs,
    ),
]
LLAMA_4 = ("scout", "maverick", "behemoth")
LLAMA_4_GPUS = "8xH100"
_OF_TABLE = {"format", "out", "force"}
"""Further options that mean something without a SPEC."""


@app.command("plan")
@takes(PlanRequest)
def plan_command(
    ctx: typer.Context,
    *,
    spec: OptionalSpec = None,
    request: PlanRequest,
    overrides: o.SetOption = None,
    emit: o.EmitOption = None,
    model: o.ModelOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    verbose: o.VerboseOption = False,
    explain: o.ExplainOption = False,
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Compute what a model costs and whether it fits the hardware.

    Without SPEC: Scout, Maverick and Behemoth in one table, with fit, longest context and fewest GPUs for each
    precision. Exit code 3 if a spec does not fit. With --emit, an engine's launch instead, planned with its own cache
    policy unless --engine names another. A recipe is planned phase by phase: GPU-hours, days, energy.
    A scenario is planned server by server: memory on shared GPUs, total GPUs, price, a single request.
    """
    if spec is None:
        _table(ctx, request, format)
        return
    kind = kind_named(spec)
    if kind in ("recipe", "scenario"):
        _refuse_of_specs(ctx, kind)
        if kind == "recipe":
            _recipe(recipe_at(spec, overrides), request, format, out, force)
        else:
            _scenario(scenario_at(spec, overrides), request, format, out, force)
        return
    graph = compiled(spec, overrides)
    if emit is not None:
        deliver(launch(ctx, request, graph), out, force=force)
        return
    if model is not None:
        raise UserError([Problem("--model needs --emit", hint="it names the checkpoint that an engine loads")])
    from planners.plan import plan, plan_for_page

    on_one_screen = format in (o.Format.TABLE, o.Format.MARKDOWN) and not (verbose or explain)
    answer = plan_for_page(graph, request) if on_one_screen else plan(graph, request)
    page = _report if format is o.Format.HTML else partial(_page, verbose=verbose, explain=explain)
    write(answer, lambda: page(graph, answer), format, out, force=force)
    if answer.fits is False:
        raise typer.Exit(DOES_NOT_FIT)


def _recipe(recipe: "LoadedRecipe", request: PlanRequest, style: o.Format, out: Path | None, force: bool) -> None:
    """The cost of a recipe's phases."""
    from l4spec.report.recipe_page import recipe_page
    from planners.recipes.cost import plan_recipe

    answer = plan_recipe(recipe, recipe_options(request))
    write(answer, lambda: recipe_page(answer), style, out, force=force)
    if answer.fits is False:
        raise typer.Exit(DOES_NOT_FIT)


def _scenario(loaded: "LoadedScenario", request: PlanRequest, style: o.Format, out: Path | None, force: bool) -> None:
    """Print the plan of a scenario: memory and cost of its servers, and one request alone."""
    from l4spec.report.scenario_page import scenario_page
    from planners.simulate.scenario_plan import plan_scenario

    refuse_options_of_scenarios(request)
    answer = plan_scenario(loaded)
    write(answer, lambda: scenario_page(answer), style, out, force=force)


def _report(graph: "LayerGraph", plan: "Plan") -> "Page":
    """The complete HTML report, with collapsible parts."""
    from l4spec.report.report_page import report_page

    return report_page(graph, plan)


def _page(graph: "LayerGraph", plan: "Plan", verbose: bool, explain: bool) -> "Page":
    from l4spec.report.plan_page import plan_page

    page = plan_page(plan, max_seq_len=graph.model.text.stack.width.max_seq_len)
    if verbose:
        from l4spec.report.plan_detail import detail_page

        page += detail_page(plan)
    if explain:
        from l4spec.report.explain import explain_page

        page += explain_page(graph, plan)
    return page


def _refuse_of_specs(ctx: typer.Context, kind: str) -> None:
    """Raise UserError for options that only a spec's plan has: none is left aside silently."""
    given = [name for name in given_options(ctx) if name in ("emit", "model", "verbose", "explain")]
    if given:
        raise UserError([Problem(f"{option_name(name)} is for specs, this is a {kind}") for name in given])


def _refuse_others(ctx: typer.Context, request: PlanRequest, accepted: frozenset[str]) -> None:
    """Raise UserError for options that are about one model: none is left aside silently."""
    alone = [flag_of(PlanRequest, name) for name in request.echo() if name not in accepted]
    others = [name for name in given_options(ctx) if name not in _OF_TABLE and name not in PlanRequest.model_fields]
    alone += map(option_name, others)
    if alone:
        hint = "without one, all Llama 4 models are planned"
        raise UserError([Problem(f"{flag} needs a SPEC", hint=hint) for flag in alone])


def _table(ctx: typer.Context, request: PlanRequest, style: o.Format) -> None:
    """The report on the shipped models, which nothing limits; raises UserError for options that are about one model."""
    from l4spec.report.model_table import ACCEPTED, PRECISIONS, model_table, model_table_page

    _refuse_others(ctx, request, ACCEPTED)
    precisions = (request.quantization,) if "quantization" in request.model_fields_set else PRECISIONS
    asked = request if request.gpus else request.changed(gpus=LLAMA_4_GPUS)
    table = model_table([compiled(name, ()) for name in LLAMA_4], asked, precisions)
    write(table, lambda: model_table_page(table), style, ctx.params["out"], force=ctx.params["force"])
