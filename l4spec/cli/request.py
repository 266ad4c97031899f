"""What several commands do with a spec and with what was given on the command line."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph


def given_options(ctx: typer.Context) -> tuple[str, ...]:
    """Names of the parameters that the user wrote, defaults left out."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return tuple(name for name, source in sources.items() if source is not None and source.name != "DEFAULT")


def option_name(parameter: str) -> str:
    """A parameter as the command line writes it: `--kv-dtype`."""
    return "--" + {"overrides": "set"}.get(parameter, parameter).replace("_", "-")


def compiled(path_or_name: str, overrides: Sequence[str] | None) -> "LayerGraph":
    """The layer graph of a spec by path or shipped name, or of a config.json; says on stderr what an import left out.

    Raises UserError.
    """
    from l4spec.cli.output import complain
    from l4spec.huggingface import opening
    from l4spec.spec.document_kinds import parse_as
    from l4spec.spec.model import ModelSpec

    document, notes = opening.open_document(path_or_name, overrides or ())
    for note in notes:
        complain(f"note: {note}")
    return opening.compiled(parse_as(document, ModelSpec))
