"""`l4spec simulate`: what a deployment does under load, request by request."""

from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.generated import takes
from l4spec.cli.output import write
from l4spec.cli.progress import progress
from planners.simulate.request import SimulateRequest

if TYPE_CHECKING:
    from l4spec.report.page import Page

ScenarioArgument = Annotated[
    str,
    typer.Argument(
        metavar="SCENARIO",
        help="A scenario (`l4spec ls scenarios`), or a spec whose load the options describe.",
        show_default=False,
    ),
]
ProgressOption = Annotated[
    bool | None, typer.Option("--progress/--no-progress", help="A bar on stderr.  [default: on a terminal]")
]


@app.command("simulate")
@takes(SimulateRequest)
def simulate_command(
    scenario: ScenarioArgument,
    *,
    request: SimulateRequest,
    overrides: o.SetOption = None,
    bar: ProgressOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Simulate a load on deployed models: latencies, service levels, cache and cost.

    Every request is scheduled step by step by the engine's own rules, and every step is timed. Ctrl-C and --time-limit
    end a run with what is done by then.
    """
    from planners.simulate.asked import scenario_of
    from planners.simulate.run import Simulation

    simulation = Simulation(scenario_of(scenario, request, overrides or ()))
    with progress("simulating", bar) as report:
        outcome = simulation.run(time_limit=request.time_limit, progress=report)
    result = outcome.result.model_copy(update={"echo": request.echo()})

    def page() -> "Page":
        from l4spec.report.simulate_page import simulate_page

        return simulate_page(result)

    write(result, page, format, out, force=force)
