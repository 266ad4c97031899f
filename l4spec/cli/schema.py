"""`l4spec schema`: the JSON Schema of a kind of document."""

from typing import Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import deliver
from l4spec.errors import UserError, nearest

KindArgument = Annotated[
    str, typer.Argument(metavar="KIND", help="spec, scenario or recipe.  [default: spec]", show_default=False)
]


@app.command("schema")
def schema_command(kind: KindArgument = "spec", out: o.OutOption = None, force: o.ForceOption = False) -> None:
    """Write the JSON Schema of a kind of document, for editors that complete and check YAML."""
    from l4spec.spec.document_kinds import DOCUMENT_KINDS
    from l4spec.spec.json_schema import schema_text

    if kind not in DOCUMENT_KINDS:
        raise UserError(f"unknown kind of document {kind!r}", hint=nearest(kind, DOCUMENT_KINDS))
    deliver(schema_text(DOCUMENT_KINDS[kind].root), out, force=force)
