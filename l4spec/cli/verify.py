"""`l4spec verify`: what people claim, held against the plan."""

import typer

from l4spec.cli import options as o
from l4spec.cli.app import CLAIM_FAILED, app
from l4spec.cli.output import deliver
from l4spec.cli.request import compiled


@app.command("verify")
def verify_command(
    spec: o.SpecArgument,
    overrides: o.SetOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Hold the claims of a spec against the plan: claimed, computed, difference, holds or not, source.

    Exit code 1 when a claim does not hold.
    """
    from l4spec.report.page import to_markdown, to_text
    from l4spec.report.verify import verify, verify_page

    report = verify(compiled(spec, overrides))
    if format is o.Format.JSON:
        text = report.model_dump_json(indent=2)
    else:
        page = verify_page(report)
        text = to_markdown(page) if format is o.Format.MARKDOWN else to_text(page)
    deliver(text, out, force=force)
    if not report.holds:
        raise typer.Exit(CLAIM_FAILED)
