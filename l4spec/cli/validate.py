"""`l4spec validate`: are specs right?"""

import typer

from l4spec.cli import options as o
from l4spec.cli.app import USER_ERROR, app
from l4spec.cli.output import complain, show
from l4spec.cli.request import compiled
from l4spec.errors import UserError


@app.command("validate")
def validate_command(specs: o.SpecsArgument, overrides: o.SetOption = None) -> None:
    """Check specs: print `ok` or every problem with its file, line and column. Exit code 2 when one is wrong."""
    wrong = False
    for spec in specs:
        try:
            graph = compiled(spec, overrides)
        except UserError as error:
            wrong = True
            for problem in error.problems:
                complain(f"error: {problem}")
        else:
            show(f"{spec}: ok ({graph.name}, {graph.num_layers} layers)")
    if wrong:
        raise typer.Exit(USER_ERROR)
