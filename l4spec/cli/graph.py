"""`l4spec graph`: the layer graph, to read or to draw."""

from enum import StrEnum
from typing import Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import deliver
from l4spec.cli.request import compiled


class GraphFormat(StrEnum):
    """How a graph is written."""

    TEXT = "text"
    MERMAID = "mermaid"
    DOT = "dot"
    JSON = "json"


class Level(StrEnum):
    """How much of a graph is drawn."""

    BLOCK = "block"
    OP = "op"


@app.command("graph")
def graph_command(
    spec: o.SpecArgument,
    overrides: o.SetOption = None,
    format: Annotated[GraphFormat, typer.Option("--format", help="How to write the graph.")] = GraphFormat.TEXT,  # noqa: A002
    level: Annotated[
        Level, typer.Option("--level", help="Runs of equal blocks, or every layer with its operations.")
    ] = Level.BLOCK,
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Write the layer graph: nodes with their parameters, edges with their tensor shapes."""
    from l4spec.report.graph_views import view_of, write_view

    view = view_of(compiled(spec, overrides), level.value)
    deliver(write_view(view, format.value), out, force=force)
