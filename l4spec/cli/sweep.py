"""`l4spec sweep`: a row of cost for each variant of a spec."""

from typing import Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.generated import takes
from l4spec.cli.output import deliver, write
from planners.sweep.sweep_request import REFUSED, SweepRequest

_WIDEN = "Factors of width, as 1,1.5: query heads, feed-forward and hidden size, by legal steps."


@app.command("sweep")
@takes(SweepRequest, refuse=REFUSED)
def sweep_command(
    spec: o.SpecArgument,
    request: SweepRequest,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=LIST",
            help="Values of a field, such as text.parts.moe.num_experts=8,16,32; repeatable, one row per combination.",
            show_default=False,
        ),
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(
            "--link",
            metavar="PATH=PATH",
            help="A field that has the value of another one in every row; repeatable.",
            show_default=False,
        ),
    ] = None,
    widen: Annotated[str, typer.Option("--widen", metavar="LIST", help=_WIDEN)] = "1",
    format: Annotated[  # noqa: A002 - the option's name
        o.RowFormat, typer.Option("--format", help="How to write the rows.")
    ] = o.RowFormat.TABLE,
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Plan every combination of values of a spec: parameters, cache, fits or not, TPOT, cost, GPU-hours.

    A combination that is not a valid spec, or cannot be planned, is a row without numbers; the reason is printed below.
    """
    from l4spec.cli.progress import progress_bar
    from l4spec.report.csv_text import to_csv
    from l4spec.report.sweep_page import sweep_page
    from planners.sweep.sweep import sweep

    with progress_bar("planning", None) as progress:
        made = sweep(spec, overrides or (), request, link=link or (), widen=widen, progress=progress)
    if format is o.RowFormat.CSV:
        records = made.records()
        deliver(to_csv([*records[0]], records), out, force=force)
    else:
        write(made, lambda: sweep_page(made), o.Format(format.value), out, force=force)
