"""`l4spec validate`: are documents right?"""

from collections.abc import Sequence

import typer

from l4spec.cli import options as o
from l4spec.cli.app import USER_ERROR, app
from l4spec.cli.output import complain, show
from l4spec.errors import UserError


@app.command("validate")
def validate_command(specs: o.SpecsArgument, overrides: o.SetOption = None) -> None:
    """Check specs, scenarios and recipes: print `ok` or every problem with its file, line and column.

    Exit code 2 if one is invalid.
    """
    wrong = False
    for spec in specs:
        try:
            summary = _checked(spec, overrides or ())
        except UserError as error:
            wrong = True
            for problem in error.problems:
                complain(f"error: {problem}")
        else:
            show(f"{spec}: ok ({summary})")
    if wrong:
        raise typer.Exit(USER_ERROR)


def _checked(path_or_name: str, overrides: Sequence[str]) -> str:
    """Short description of the document. Raises UserError with every problem."""
    from l4spec.huggingface.opening import open_document
    from l4spec.spec.document_kinds import parse_any
    from l4spec.spec.model import ModelSpec
    from l4spec.spec.recipe import Recipe
    from l4spec.spec.scenario import Scenario

    document, _ = open_document(path_or_name, overrides)
    parsed = parse_any(document)
    if isinstance(parsed, ModelSpec):
        import l4spec

        graph = l4spec.compile(parsed)
        return f"{graph.name}, {graph.num_layers} layers"
    if isinstance(parsed, Scenario):
        from l4spec.spec.scenario.references import with_models

        models = with_models(parsed, document).models
        return f"{parsed.name}, a scenario with {', '.join(spec.name for spec in models.values())}"
    if isinstance(parsed, Recipe):
        from l4spec.spec.recipe.load import load_recipe

        loaded = load_recipe(path_or_name, overrides)
        return f"{parsed.name}, a recipe of {len(parsed.phases)} phase(s) for {loaded.model(None).name}"
    return parsed.name
