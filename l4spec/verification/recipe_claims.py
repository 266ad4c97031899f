"""Published claims about a training run, compared with the plan of its recipe."""

from collections.abc import Callable, Mapping

from l4spec.errors import Problem, UserError
from l4spec.spec.recipe import RecipeClaim
from l4spec.spec.recipe.load import LoadedRecipe
from planners.frozen import Frozen
from planners.recipes.cost import SECONDS_PER_HOUR, RecipeOptions, plan_recipe
from planners.recipes.recipe_plan import PhasePlan, RecipePlan

FLOPS_PER_PARAMETER = 6
"""FLOPs of training a token and an active parameter, attention pairs left out, as publications count them."""


class RecipeCheck(Frozen):
    """One claim and the planned value. `difference` is (computed - claimed) / claimed."""

    what: str
    phase: str | None
    claimed: float
    computed: float
    difference: float
    within: float
    holds: bool
    rests_on_estimates: bool
    source: str


class RecipeReport(Frozen):
    """All claims of a recipe."""

    l4spec_verify_recipe: int = 1
    recipe: str
    estimated: tuple[str, ...]
    checks: tuple[RecipeCheck, ...]
    holds: bool


def verify_recipe(loaded: LoadedRecipe, options: RecipeOptions | None = None) -> RecipeReport:
    """Every claim beside its computed value. Raises UserError for one that the plan has no number for."""
    return judge(loaded, plan_recipe(loaded, options))


def judge(loaded: LoadedRecipe, answer: RecipePlan) -> RecipeReport:
    """As `verify_recipe`, with a plan that is made already."""
    checks = tuple(_check(claim, index, answer) for index, claim in enumerate(loaded.recipe.claims))
    return RecipeReport(
        recipe=answer.recipe, estimated=answer.estimated, checks=checks, holds=all(check.holds for check in checks)
    )


def _check(claim: RecipeClaim, index: int, answer: RecipePlan) -> RecipeCheck:
    phases = [phase for phase in answer.phases if claim.phase in (None, phase.name)]
    computed = _MEASURES[claim.what](answer, phases) if phases else None
    if computed is None:
        raise UserError([Problem(f"no {claim.what} is planned", f"claims[{index}]", hint="give --gpus, or a price")])
    difference = (computed - claim.value) / claim.value
    return RecipeCheck(
        what=claim.what,
        phase=claim.phase,
        claimed=claim.value,
        computed=computed,
        difference=difference,
        within=claim.within,
        holds=abs(difference) <= claim.within,
        rests_on_estimates=bool(answer.estimated),
        source=claim.source,
    )


def _sum(phases: list[PhasePlan], field: str) -> float | None:
    values = [getattr(phase, field) for phase in phases]
    return None if None in values else sum(values)


def _tflops(answer: RecipePlan, phases: list[PhasePlan]) -> float | None:
    hours = _sum(phases, "gpu_hours")
    if not hours:
        return None
    tokens = sum(phase.tokens for phase in phases)
    return FLOPS_PER_PARAMETER * answer.active_params * tokens / (hours * SECONDS_PER_HOUR) / 1e12


_MEASURES: Mapping[str, Callable[[RecipePlan, list[PhasePlan]], float | None]] = {
    "gpu_hours": lambda answer, phases: _sum(phases, "gpu_hours"),
    "days": lambda answer, phases: _sum(phases, "days"),
    "usd": lambda answer, phases: _sum(phases, "usd"),
    "tokens": lambda answer, phases: _sum(phases, "tokens"),
    "tflops_per_gpu": _tflops,
    "gpus": lambda answer, phases: max((phase.num_gpus or 0 for phase in phases), default=0) or None,
}
