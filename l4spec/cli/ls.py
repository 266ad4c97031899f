"""`l4spec ls`: lists of shipped documents and catalogue entries."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import write

if TYPE_CHECKING:
    from l4spec.report.listing_document import Listed


class Listing(StrEnum):
    """Kind of entries to list."""

    SPECS = "specs"
    SCENARIOS = "scenarios"
    RECIPES = "recipes"
    HARDWARE = "hardware"
    QUANTIZATION = "quantization"
    ENGINES = "engines"
    KINDS = "kinds"


@app.command("ls")
def ls_command(
    what: Annotated[
        Listing,
        typer.Argument(
            metavar="WHAT",
            help="specs, scenarios, recipes, hardware, quantization, engines or kinds.",
            show_default=False,
        ),
    ] = Listing.SPECS,
    markdown: o.MarkdownOption = False,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
) -> None:
    """List the shipped specs, scenarios or recipes; or the known hardware, schemes, engines and layer kinds.

    JSON has the complete entries of the catalogue, every number with its source.
    """
    from l4spec.report.listings import listing

    style = o.Format.MARKDOWN if markdown else format
    write(lambda: _document(what), lambda: listing(what.value), style, None, force=False)


def _document(what: Listing) -> "Listed":
    """The listing as JSON; its complete entries import the planner."""
    from l4spec.report.listing_document import listed

    return listed(what.value)
