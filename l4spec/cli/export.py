"""`l4spec export`: a spec as a Hugging Face configuration."""

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import deliver


@app.command("export")
def export_command(
    spec: o.SpecArgument, overrides: o.SetOption = None, out: o.OutOption = None, force: o.ForceOption = False
) -> None:
    """Convert a spec to a Hugging Face config.json, if its model type can express it."""
    import json

    import l4spec
    from l4spec.huggingface import export_config

    deliver(json.dumps(export_config(l4spec.load(spec, overrides or ())), indent=2), out, force=force)
