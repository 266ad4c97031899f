"""`l4spec plan --emit`: a plan by the engine's own policy, and its launch."""

from typing import TYPE_CHECKING

import typer

from l4spec.cli.app import DOES_NOT_FIT
from l4spec.cli.output import complain
from l4spec.cli.request import given_options, option_name
from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph
    from planners.request import PlanRequest

_OF_REPORTS = ("format", "verbose", "explain")


def launch(ctx: typer.Context, request: "PlanRequest", graph: "LayerGraph") -> str:
    """The launch of the plan for `--emit`. Exits with 3 and the reason on stderr where the plan does not fit.

    Raises UserError for what cannot be planned, and for what the engine cannot express.
    """
    from l4spec.deploy import LaunchRequest, emit
    from l4spec.deploy.own_engine import by_own_engine
    from l4spec.report.plan_page import verdict
    from planners.plan import plan as plan_for

    target = ctx.params["emit"].value
    _check(request, given_options(ctx))
    request = by_own_engine(target, request)
    plan = plan_for(graph, request)
    if not plan.fits:
        complain(f"error: {verdict(plan)}: nothing is emitted (l4spec plan without --emit lists what would fit)")
        raise typer.Exit(DOES_NOT_FIT)
    changed = bool(ctx.params["overrides"])
    return emit(target, LaunchRequest(plan, graph, ctx.params["model"], request.all_images, changed))


def _check(request: "PlanRequest", given: tuple[str, ...]) -> None:
    problems = [Problem(f"--emit prints no report: leave {option_name(n)} out") for n in given if n in _OF_REPORTS]
    if request.gpus is None:
        problems.append(Problem("--emit needs --gpus", hint="as --gpus 8xH100"))
    if problems:
        raise UserError(problems)
