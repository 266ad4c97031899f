"""`l4spec report`: one HTML file with the cost and fit of a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.generated import takes
from l4spec.cli.other_documents import (
    kind_named,
    recipe_at,
    recipe_options,
    refuse_options_of_scenarios,
    scenario_at,
)
from l4spec.cli.output import JsonDocument, write
from l4spec.cli.request import compiled, planned_pairs
from l4spec.errors import Problem, UserError
from planners.request import PlanRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from l4spec.report.page import Page
    from l4spec.spec.recipe.load import LoadedRecipe
    from l4spec.spec.scenario.references import LoadedScenario

    Report = tuple[JsonDocument, Callable[[], Page]]

OutFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", parser=o.file_to_write, help="The file to write."),
]


@app.command("report")
@takes(PlanRequest)
def report_command(
    specs: o.SpecsArgument,
    request: PlanRequest,
    overrides: o.SetOption = None,
    format: o.FormatOption = o.Format.HTML,  # noqa: A002 - the option's name
    out: OutFile = None,
    force: o.ForceOption = False,
) -> None:
    """Write one HTML file: verdict, architecture, memory, cache growth, roofline, times, layouts and claims.

    Each number expands to its formula, source and error. The file makes no network requests. Several specs are
    compared, a scenario is planned and simulated, a recipe gets the cost of each phase.
    """
    answer, page = _report(specs, request, overrides)
    write(answer, page, format, out, force=force)


def _report(specs: list[str], request: PlanRequest, overrides: list[str] | None) -> "Report":
    """The result for the given documents, and the function that renders its page."""
    kinds = {spec: kind_named(spec) for spec in specs}
    if len(specs) > 1:
        hint = "report recipes and scenarios one by one"
        others = [spec for spec, kind in kinds.items() if kind in ("recipe", "scenario")]
        if others:
            raise UserError([Problem("only specs are compared", spec, hint=hint) for spec in others])
        return _comparison(specs, request, overrides)
    (spec,) = specs
    if kinds[spec] == "recipe":
        return _recipe(recipe_at(spec, overrides), request)
    if kinds[spec] == "scenario":
        return _scenario(scenario_at(spec, overrides), request)
    from l4spec.report.report_page import report_page
    from planners.plan import plan

    graph = compiled(spec, overrides)
    answer = plan(graph, request)
    return answer, lambda: report_page(graph, answer)


def _comparison(specs: list[str], request: PlanRequest, overrides: list[str] | None) -> "Report":
    from l4spec.report.compare import compare
    from l4spec.report.document_reports import comparison_report

    pairs = planned_pairs(specs, request, overrides)
    comparison = compare(pairs)
    return comparison, lambda: comparison_report(pairs, comparison)


def _recipe(recipe: "LoadedRecipe", request: PlanRequest) -> "Report":
    from l4spec.report.document_reports import recipe_report
    from planners.recipes.cost import graph_of, planned_recipe

    planned = planned_recipe(recipe, recipe_options(request))
    return planned.cost, lambda: recipe_report(planned, recipe, graph_of(recipe))


def _scenario(loaded: "LoadedScenario", request: PlanRequest) -> "Report":
    """The simulation, and a page that has its plan too: the servers are planned once."""
    from l4spec.report.document_reports import scenario_report
    from planners.simulate.planning import planned_servers
    from planners.simulate.run import Simulation
    from planners.simulate.scenario_plan import plan_scenario

    refuse_options_of_scenarios(request)
    servers = planned_servers(loaded)
    outcome = Simulation(loaded, servers).run()
    sources = loaded.scenario.sources
    return outcome.result, lambda: scenario_report(plan_scenario(loaded, servers), outcome, sources)
