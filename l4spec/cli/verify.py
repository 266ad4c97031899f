"""`l4spec verify`: what people claim, held against the plan."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import typer

from l4spec.cli import options as o
from l4spec.cli.app import CLAIM_FAILED, app
from l4spec.cli.output import deliver
from l4spec.cli.request import compiled
from l4spec.errors import Problem, UserError


def _placed(error: UserError, spec: str, overrides: Sequence[str]) -> Iterator[Problem]:
    """The problems of claims with the places of these claims in the spec."""
    from l4spec.huggingface.opening import open_document
    from l4spec.spec.parse import place_of

    document = open_document(spec, overrides)[0]
    for problem in error.problems:
        match = re.fullmatch(r"claims\[([0-9]+)\]", problem.path)
        yield replace(problem, place=place_of(document, ("claims", int(match[1])))) if match else problem


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
    from l4spec.report.claims_page import verify_page
    from l4spec.report.page import to_markdown, to_text
    from l4spec.verification.claims import verify

    graph = compiled(spec, overrides)
    try:
        report = verify(graph)
    except UserError as error:
        raise UserError(_placed(error, spec, overrides or ())) from None
    if format is o.Format.JSON:
        text = report.model_dump_json(indent=2)
    else:
        page = verify_page(report)
        text = to_markdown(page) if format is o.Format.MARKDOWN else to_text(page)
    deliver(text, out, force=force)
    if not report.holds:
        raise typer.Exit(CLAIM_FAILED)
