"""`l4spec compare`: models side by side."""

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.generated import takes
from l4spec.cli.output import write
from l4spec.cli.request import planned_pairs
from planners.request import PlanRequest


@app.command("compare")
@takes(PlanRequest)
def compare_command(
    specs: o.SpecsArgument,
    request: PlanRequest,
    overrides: o.SetOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Plan several models the same way and compare them side by side; --set applies to each of them."""
    from l4spec.report.compare import compare, compare_page

    pairs = planned_pairs(specs, request, overrides)
    comparison = compare(pairs)
    write(comparison, lambda: compare_page(comparison), format, out, force=force)
