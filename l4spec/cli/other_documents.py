"""`plan` and `verify` of a recipe or a scenario instead of a spec."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from l4spec.errors import Problem, SpecError, UserError
from l4spec.options import flag_of
from planners.request import PlanRequest

if TYPE_CHECKING:
    from l4spec.spec.recipe.load import LoadedRecipe
    from l4spec.spec.scenario.references import LoadedScenario
    from planners.recipes.cost import RecipeOptions

OF_RECIPES = {"gpus", "usd_per_gpu_hour"}
"""Options of a plan that a recipe leaves open; it sets all others itself, phase by phase."""
_FOLDERS = ("recipes/", "scenarios/")
_ENDINGS = (".yaml", ".yml")


def recipe_at(path_or_name: str, overrides: Sequence[str] | None) -> "LoadedRecipe":
    """The recipe of this name or path. Raises SpecError."""
    from l4spec.spec.recipe.load import load_recipe

    return load_recipe(path_or_name, tuple(overrides or ()))


def scenario_at(path_or_name: str, overrides: Sequence[str] | None) -> "LoadedScenario":
    """The scenario of this name or path. Raises SpecError."""
    from l4spec.spec.scenario.references import load_scenario

    return load_scenario(path_or_name, tuple(overrides or ()))


def kind_named(path_or_name: str) -> str | None:
    """The kind that a document declares; None for documents that can only be a spec, or cannot be read."""
    if not path_or_name.startswith(_FOLDERS) and not path_or_name.endswith(_ENDINGS):
        return None
    try:
        if not _may_be_another_kind(path_or_name):
            return None
        from l4spec.spec.document import load_document
        from l4spec.spec.document_kinds import kind_of

        return kind_of(load_document(path_or_name)).name
    except SpecError:
        return None


def _may_be_another_kind(path_or_name: str) -> bool:
    """True if the text names a kind, or extends a file that may; so that most specs are parsed only once."""
    from l4spec.library import find_spec
    from l4spec.spec.files import read_utf8

    text = read_utf8(find_spec(path_or_name))
    return any(word in text for word in ("recipe", "scenario", "extends"))


def recipe_options(request: PlanRequest) -> "RecipeOptions":
    """The options that a recipe takes. Raises UserError naming every other one."""
    from planners.recipes.cost import RecipeOptions

    refuse_options(
        request,
        OF_RECIPES,
        "a recipe is planned by its own",
        "each phase says it; --set phases[0].layout.dp=4 changes it",
    )
    return RecipeOptions(request.gpus, request.usd_per_gpu_hour)


def refuse_options_of_scenarios(request: PlanRequest) -> None:
    """Raise UserError naming every option that is given, since a scenario sets them per model."""
    hint = "each model says it; --set models.KEY.… changes it"
    refuse_options(request, set(), "a scenario is planned by its own", hint)


def refuse_options(request: PlanRequest, accepted: set[str], message: str, hint: str) -> None:
    """Raise UserError naming every option that is given and not accepted."""
    others = [flag_of(PlanRequest, name) for name in request.echo() if name not in accepted]
    if others:
        raise UserError([Problem(message, flag, hint=hint) for flag in others])
