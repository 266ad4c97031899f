"""`l4spec search`: from a service level to the deployments that meet it, the cheapest first."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import DOES_NOT_FIT, app
from l4spec.cli.generated import takes
from l4spec.cli.output import complain, deliver, write, write_file
from l4spec.cli.request import compiled
from l4spec.options import option_of
from planners.request import PlanRequest
from planners.search.search_request import SearchRequest

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph
    from planners.search.search_types import SearchAnswer


_OF_TRAINING = ("mode", *(name for name in PlanRequest.model_fields if option_of(PlanRequest, name).mode == "train"))
_REFUSED = {
    **dict.fromkeys(_OF_TRAINING, "a search is for serving"),
    "context": "a search counts --prompt-tokens and --output-tokens apart: leave it out",
    "batch": "a search is asked for --concurrency or --rate, or chooses the load: leave it out",
    "dp": "a search chooses the number of replicas: leave it out",
    "cp": "the time of prefills divided among ranks (cp) is not estimated: leave it out",
    "objective": "a search ranks by price: leave it out",
}


@app.command("search")
@takes(SearchRequest, refuse=_REFUSED)
def search_command(
    spec: o.SpecArgument,
    request: SearchRequest,
    overrides: o.SetOption = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Deployments to list.")] = 10,
    explain: Annotated[bool, typer.Option("--explain", help="Add what binds each kind of deployment.")] = False,
    emit: o.EmitOption = None,
    model: o.ModelOption = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", parser=o.file_to_write, help="Write the front as a picture."),
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        o.RowFormat, typer.Option("--format", help="How to write the answer.")
    ] = o.RowFormat.TABLE,
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Find the cheapest deployment that meets a service level: hardware, layout, scheme, engine, replicas.

    Exit code 3 when none does; the answer then says which limit to loosen and by how much.
    """
    from l4spec.cli.progress import progress
    from l4spec.report.search_page import search_page, search_report, to_csv, verdict
    from planners.search.deployments import search_deployments

    graph = compiled(spec, overrides)
    if emit is not None:
        from l4spec.deploy.own_engine import by_own_engine

        request = by_own_engine(emit.value, request)
    with progress("searching", None) as tick:
        answer = search_deployments(graph, request, tick=tick)
    if svg is not None and answer.front:
        from l4spec.report.front import front_svg

        write_file(svg, front_svg(answer.front, verdict(answer)), force=force)
        complain(f"wrote {svg}")
    if emit is not None and answer.ranked:
        deliver(_launch(emit.value, answer, graph, model, changed=bool(overrides)), out, force=force)
    elif format is o.RowFormat.CSV:
        deliver(to_csv(answer), out, force=force)
    else:
        style = o.Format(format.value)
        page = search_report if style is o.Format.HTML else search_page
        write(answer, lambda: page(answer, spec, top=top, explain=explain), style, out, force=force)
    if not answer.ranked:
        raise typer.Exit(DOES_NOT_FIT)


def _launch(target: str, answer: "SearchAnswer", graph: "LayerGraph", model: str | None, *, changed: bool) -> str:
    """The launch of one replica of the best deployment; a balancer in front of several is nobody's launch."""
    from l4spec.deploy import LaunchRequest, emit
    from planners.plan import plan

    best = answer.ranked[0]
    if best.replicas > 1:
        complain(f"note: {best.replicas} of these replicas, each with its share of the requests")
    planned = PlanRequest(**best.request)
    return emit(target, LaunchRequest(plan(graph, planned), graph, model, planned.all_images, changed))
