"""`l4spec ls`: what is shipped."""

from enum import StrEnum
from typing import Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import show


class Listing(StrEnum):
    """What can be listed."""

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
) -> None:
    """List the shipped specs, scenarios or recipes; or hardware, schemes, engines and layer kinds that are known."""
    from l4spec.report.listings import listing
    from l4spec.report.page import to_markdown, to_text

    page = listing(what.value)
    show(to_markdown(page) if markdown else to_text(page))
