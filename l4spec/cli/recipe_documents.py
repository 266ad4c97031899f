"""What `plan` and `verify` do where they are given a recipe in the place of a spec."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from l4spec.errors import Problem, UserError
from l4spec.options import flag_of
from planners.request import PlanRequest

if TYPE_CHECKING:
    from l4spec.spec.recipe.load import LoadedRecipe
    from planners.recipes.cost import RecipeOptions

OF_RECIPES = {"gpus", "usd_per_gpu_hour"}
"""Options of a plan that a recipe leaves open; everything else it says itself, phase by phase."""


def recipe_named(path_or_name: str, overrides: Sequence[str] | None) -> "LoadedRecipe | None":
    """The recipe of this name or path; None where it is another kind of document, or none."""
    from l4spec.errors import SpecError
    from l4spec.spec.document_kinds import kind_of
    from l4spec.spec.recipe.load import load_recipe

    if not path_or_name.startswith("recipes/") and not path_or_name.endswith((".yaml", ".yml")):
        return None
    try:
        from l4spec.spec.document import load_document

        if kind_of(load_document(path_or_name)).name != "recipe":
            return None
    except SpecError:
        return None
    return load_recipe(path_or_name, tuple(overrides or ()))


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
