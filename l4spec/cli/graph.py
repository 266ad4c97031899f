"""`l4spec graph`: the layer graph, to read or to draw."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import complain, deliver, write_file
from l4spec.cli.request import compiled
from l4spec.errors import UserError

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph


class GraphFormat(StrEnum):
    """Output format of a graph."""

    TEXT = "text"
    MERMAID = "mermaid"
    DOT = "dot"
    JSON = "json"
    SVG = "svg"
    PNG = "png"


class Level(StrEnum):
    """Level of detail of a graph."""

    BLOCK = "block"
    OP = "op"


@app.command("graph")
def graph_command(
    spec: o.SpecArgument,
    overrides: o.SetOption = None,
    format: Annotated[GraphFormat, typer.Option("--format", help="How to write the graph.")] = GraphFormat.TEXT,  # noqa: A002
    level: Annotated[
        Level | None,
        typer.Option(
            "--level",
            help="Repeated layers folded, or every layer with its operations.  [default: block]",
            show_default=False,
        ),
    ] = None,
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Write the layer graph: nodes with their parameters, edges with their tensor shapes.

    SVG and PNG are pictures: repeated layers are folded, each kind is expanded into its operations once.
    """
    graph = compiled(spec, overrides)
    if format in (GraphFormat.SVG, GraphFormat.PNG):
        if level is not None:
            raise UserError("--level is of text, mermaid, dot and json", hint="a picture shows blocks and operations")
        _picture(graph, format, out, force)
        return
    from l4spec.report.graph_views import view_of, write_view

    deliver(write_view(view_of(graph, (level or Level.BLOCK).value), format.value), out, force=force)


def _picture(graph: "LayerGraph", style: GraphFormat, out: Path | None, force: bool) -> None:
    from l4spec.report.drawing import to_png, to_svg
    from l4spec.report.picture import picture_of

    if style is GraphFormat.PNG and out is None:
        raise UserError("a PNG is no text for a terminal", hint="name a file with --out")
    svg = to_svg(picture_of(graph))
    if style is GraphFormat.PNG and out is not None:
        write_file(out, to_png(svg), force=force)
        complain(f"wrote {out}")
        return
    deliver(svg, out, force=force)
