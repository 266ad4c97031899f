"""`l4spec compare`: models side by side."""

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.generated import options_named, takes
from l4spec.cli.output import write
from l4spec.cli.request import compiled
from l4spec.errors import Problem, UserError
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
    """Plan several models the same way and put them side by side; --set applies to each of them."""
    from l4spec.report.compare import compare, compare_page
    from planners.plan import plan

    pairs = []
    for spec in specs:
        graph = compiled(spec, overrides)
        try:
            with options_named(PlanRequest):
                pairs.append((graph, plan(graph, request)))
        except UserError as error:
            raise UserError([Problem(f"{spec}: {problem}") for problem in error.problems]) from None
    comparison = compare(pairs)
    write(comparison, lambda: compare_page(comparison), format, out, force=force)
