"""`l4spec search`: from a service level to the deployments that meet it, the cheapest first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import DOES_NOT_FIT, app
from l4spec.cli.generated import takes
from l4spec.cli.output import complain, deliver, write, write_file
from l4spec.cli.request import compiled
from l4spec.errors import Problem, UserError
from planners.request import PlanRequest
from planners.search.search_request import SearchRequest

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph
    from l4spec.report.page import Page
    from planners.clusters.training_search_types import TrainingSearchAnswer
    from planners.search.search_types import SearchAnswer

    Answer = SearchAnswer | TrainingSearchAnswer


SECONDS_OF_THE_BEST = 5.0
"""Time limit of the simulation that runs without `--simulate`."""
_REFUSED = {
    "objective": "a search ranks by price: leave it out",
}


@app.command("search")
@takes(SearchRequest, refuse=_REFUSED)
def search_command(
    spec: o.SpecArgument,
    request: SearchRequest,
    overrides: o.SetOption = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Deployments to list.")] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add the limiting factor of each kind of deployment.")
    ] = False,
    simulate: Annotated[bool, typer.Option("--simulate", help="Simulate the first ten, request by request.")] = False,
    emit: o.EmitOption = None,
    model: o.ModelOption = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", parser=o.file_to_write, help="Write the Pareto front as a picture."),
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        o.RowFormat, typer.Option("--format", help="How to write the result.")
    ] = o.RowFormat.TABLE,
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Find the cheapest deployment that meets a service level: hardware, layout, scheme, engine, replicas.

    With `--mode train` the cheapest cluster that trains on `--tokens` by a `--deadline`. Exit code 3 if there is none;
    the output then says which limit to relax and by how much.
    """
    graph = compiled(spec, overrides)
    if emit is not None:
        from l4spec.deploy.own_engine import by_own_engine

        request = by_own_engine(emit.value, request)
    if request.mode == "train":
        _refuse_in_training({"--svg": svg is not None, "--simulate": simulate})
    answer = _searched(graph, request)
    if answer.mode == "serve":
        answer = _simulated(answer, spec, overrides or (), request, every=simulate)
    if svg is not None:
        _draw(answer, svg, force=force)
    if emit is not None and answer.ranked:
        deliver(_launch(emit.value, answer, graph, model, changed=bool(overrides)), out, force=force)
    elif format is o.RowFormat.CSV:
        deliver(_as_csv(answer), out, force=force)
    else:
        style = o.Format(format.value)
        write(answer, lambda: _page(answer, graph, spec, style, top=top, explain=explain), style, out, force=force)
    if not answer.ranked:
        raise typer.Exit(DOES_NOT_FIT)


def _refuse_in_training(given: Mapping[str, bool]) -> None:
    problems = [
        Problem("is for a search of serving", path=flag, hint="leave it out") for flag, there in given.items() if there
    ]
    if problems:
        raise UserError(problems)


def _simulated(
    answer: "SearchAnswer", spec: str, overrides: Sequence[str], request: SearchRequest, *, every: bool
) -> "SearchAnswer":
    """The first ten simulated, or the best one alone, where a simulation takes the options that were given."""
    from l4spec.cli.progress import progress_bar
    from planners.simulate.confirm import confirmed, options_left_out

    if not every:
        if options_left_out(answer.ranked[:1]):
            return answer
        return confirmed(spec, overrides, answer, request, number=1, time_limit=SECONDS_OF_THE_BEST)
    with progress_bar("simulating", None) as progress:
        return confirmed(spec, overrides, answer, request, progress)


def _searched(graph: "LayerGraph", request: SearchRequest) -> "Answer":
    from l4spec.cli.progress import progress_bar

    with progress_bar("searching", None) as progress:
        if request.mode == "train":
            from planners.clusters.training_search import search_training

            return search_training(graph, request, progress=progress)
        from planners.search.deployments import search_deployments

        return search_deployments(graph, request, progress=progress)


def _page(answer: "Answer", graph: "LayerGraph", spec: str, style: o.Format, *, top: int, explain: bool) -> "Page":
    page = _table(answer, spec, style, top=top, explain=explain)
    if style is not o.Format.HTML or not answer.ranked:
        return page
    from l4spec.report.document_reports import with_the_best
    from planners.plan import plan

    return with_the_best(page, graph, plan(graph, PlanRequest(**answer.ranked[0].request)))


def _table(answer: "Answer", spec: str, style: o.Format, *, top: int, explain: bool) -> "Page":
    if answer.mode == "train":
        from l4spec.report.training_search_page import training_search_page

        return training_search_page(answer, spec, top=top, explain=explain)
    from l4spec.report.search_page import search_page, search_report

    page = search_report if style is o.Format.HTML else search_page
    return page(answer, spec, top=top, explain=explain)


def _as_csv(answer: "Answer") -> str:
    from l4spec.report.csv_text import to_csv

    if answer.mode == "train":
        from l4spec.report import training_search_page as page_of_training

        return to_csv(page_of_training.CSV_COLUMNS, page_of_training.csv_rows(answer))
    from l4spec.report import search_page

    return to_csv(search_page.CSV_COLUMNS, search_page.csv_rows(answer))


def _draw(answer: "Answer", svg: Path, *, force: bool) -> None:
    from l4spec.report.front import front_svg
    from l4spec.report.search_page import verdict

    if answer.mode == "serve" and answer.front:
        write_file(svg, front_svg(answer.front, verdict(answer)), force=force)
        complain(f"wrote {svg}")


def _launch(target: str, answer: "Answer", graph: "LayerGraph", model: str | None, *, changed: bool) -> str:
    """The launch of one replica of the best deployment; a balancer in front of several is not part of it."""
    from l4spec.deploy import LaunchRequest, emit
    from planners.plan import plan

    best = answer.ranked[0]
    replicas = answer.ranked[0].replicas if answer.mode == "serve" else 1
    if replicas > 1:
        complain(f"note: {replicas} of these replicas, each with its share of the requests")
    planned = PlanRequest(**best.request)
    return emit(target, LaunchRequest(plan(graph, planned), graph, model, planned.all_images, changed))
