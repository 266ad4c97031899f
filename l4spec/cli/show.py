"""`l4spec show`: a readable summary of a spec."""

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import show
from l4spec.cli.request import compiled


@app.command("show")
def show_command(spec: o.SpecArgument, overrides: o.SetOption = None, markdown: o.MarkdownOption = False) -> None:
    """Draw the layer pattern of a model and list its parts, vision, and what its author estimated."""
    from l4spec.report.page import to_markdown, to_text
    from l4spec.report.show import show_page

    page = show_page(compiled(spec, overrides))
    show(to_markdown(page) if markdown else to_text(page))
