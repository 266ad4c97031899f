"""`l4spec import`: a Hugging Face configuration as a spec."""

import re
from pathlib import Path
from typing import Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import complain, deliver
from l4spec.errors import Problem, UserError

Config = Annotated[
    Path,
    typer.Argument(metavar="CONFIG", help="A Hugging Face config.json, or its folder.", show_default=False),
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="FIELD", help="Ignore this field of the config; repeatable."),
]


@app.command("import")
def import_command(
    config: Config,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model.  [default: the file's or folder's]")
    ] = None,
    ignore: IgnoreOption = None,
    out: o.OutOption = None,
    force: o.ForceOption = False,
) -> None:
    """Convert a Hugging Face config.json to a commented spec; unsupported fields are refused by name.

    Metadata never causes a refusal. --ignore is a last resort for a refused field that you know to have no effect on
    the model; the result lists what was ignored.
    """
    from l4spec.huggingface import import_file
    from l4spec.spec.header import NAME

    if name is not None and not re.fullmatch(NAME, name):
        message = f"expected up to 120 letters, digits and ._ /- after a letter or digit, found {name!r}"
        raise UserError([Problem(message, path="--name")])
    imported = import_file(config, name, ignore=ignore or ())
    for note in imported.notes:
        complain(f"note: {note}")
    deliver(imported.yaml, out, force=force)
