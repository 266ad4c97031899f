"""`l4spec report`: one HTML file that answers what a model costs and whether it fits, to read and to send."""

from pathlib import Path
from typing import Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.generated import takes
from l4spec.cli.output import write
from l4spec.cli.request import compiled
from planners.request import PlanRequest

OutFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", parser=o.file_to_write, help="The file to write."),
]


@app.command("report")
@takes(PlanRequest)
def report_command(
    spec: o.SpecArgument,
    request: PlanRequest,
    overrides: o.SetOption = None,
    format: o.FormatOption = o.Format.HTML,  # noqa: A002 - the option's name
    out: OutFile = None,
    force: o.ForceOption = False,
) -> None:
    """Write one HTML file: verdict, architecture, memory, cache growth, roofline, times, layouts and claims.

    Each number has its formula, source and error one click away. The file asks for nothing on the network.
    """
    from l4spec.report.report_page import report_page
    from planners.plan import plan

    graph = compiled(spec, overrides)
    answer = plan(graph, request)
    write(answer, lambda: report_page(graph, answer), format, out, force=force)
