"""`l4spec schema`: the JSON Schema of the spec language."""

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import deliver


@app.command("schema")
def schema_command(out: o.OutOption = None, force: o.ForceOption = False) -> None:
    """Write the JSON Schema of the spec language, for editors that complete and check YAML."""
    from l4spec.spec.json_schema import schema_text

    deliver(schema_text(), out, force=force)
