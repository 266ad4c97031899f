"""`l4spec show`: a readable summary of a spec."""

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import write
from l4spec.cli.request import compiled


@app.command("show")
def show_command(
    spec: o.SpecArgument,
    overrides: o.SetOption = None,
    markdown: o.MarkdownOption = False,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
) -> None:
    """Show the layer pattern of a model, its parts, its vision tower, and its estimated fields."""
    from l4spec.report.listing_document import shown
    from l4spec.report.show import show_page

    graph = compiled(spec, overrides)
    style = o.Format.MARKDOWN if markdown else format
    write(lambda: shown(graph), lambda: show_page(graph), style, None, force=False)
