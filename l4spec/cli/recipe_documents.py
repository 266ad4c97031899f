"""What `plan` and `verify` do where they are given a recipe in the place of a spec."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from l4spec.errors import Problem, SpecError, UserError
from l4spec.options import flag_of
from planners.request import PlanRequest

if TYPE_CHECKING:
    from l4spec.spec.recipe.load import LoadedRecipe
    from planners.recipes.cost import RecipeOptions

OF_RECIPES = {"gpus", "usd_per_gpu_hour"}
"""Options of a plan that a recipe leaves open; everything else it says itself, phase by phase."""


def recipe_named(path_or_name: str, overrides: Sequence[str] | None) -> "LoadedRecipe | None":
    """The recipe of this name or path; None where it is another kind of document, or none."""
    if not path_or_name.startswith("recipes/") and not path_or_name.endswith((".yaml", ".yml")):
        return None
    try:
        if not _may_be_recipe(path_or_name):
            return None
        from l4spec.spec.document import load_document
        from l4spec.spec.document_kinds import kind_of

        if kind_of(load_document(path_or_name)).name != "recipe":
            return None
    except SpecError:
        return None
    from l4spec.spec.recipe.load import load_recipe

    return load_recipe(path_or_name, tuple(overrides or ()))


def _may_be_recipe(path_or_name: str) -> bool:
    """Whether the text says `recipe`, or extends a file that may: most specs need not be parsed twice to know."""
    from l4spec.library import find_spec
    from l4spec.spec.files import read_utf8

    text = read_utf8(find_spec(path_or_name))
    return "recipe" in text or "extends" in text


def recipe_options(request: PlanRequest) -> "RecipeOptions":
    """The options that a recipe takes. Raises UserError naming every other one."""
    from planners.recipes.cost import RecipeOptions

    others = [name for name in request.echo() if name not in OF_RECIPES]
    if others:
        hint = "each phase says it; --set changes it"
        raise UserError(
            [Problem("a recipe is planned by its own", flag_of(PlanRequest, name), hint=hint) for name in others]
        )
    return RecipeOptions(request.gpus, request.usd_per_gpu_hour)
