"""Job of a comparison of learning rates over sizes: the runs of a recipe's first phase, grown. Needs no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from l4spec.errors import Problem
from l4spec.spec.grow import grow
from l4spec.spec.model import ModelSpec
from l4spec.spec.recipe import Phase
from l4spec.spec.recipe.load import LoadedRecipe, load_recipe
from l4spec.training.recipe.job import RecipeJob

GrowthAxis = Literal["width", "depth", "batch", "tokens"]


@dataclass(frozen=True)
class TransferJob(RecipeJob):
    """The first phase of a recipe, `times` as large along `axis`, with its rate times `rate`."""

    axis: GrowthAxis = "width"
    times: int = 1
    rate: float = 1.0

    @cached_property
    def loaded(self) -> LoadedRecipe:
        """The recipe, whose base are its own sizes."""
        loaded = load_recipe(self.spec, self.overrides, self.variant)
        rule, phase = loaded.recipe.parametrization, loaded.recipe.phases[0]
        if rule.kind != "completedp":
            return loaded
        base = rule.base.model_copy(update={"batch": phase.batch, "tokens": phase.tokens})
        recipe = loaded.recipe.model_copy(update={"parametrization": rule.model_copy(update={"base": base})})
        return replace(loaded, recipe=recipe)

    @cached_property
    def model_spec(self) -> ModelSpec:
        """The recipe's model, grown."""
        spec = self.loaded.model(None)
        return grow(
            spec,
            width=self.times if self.axis == "width" else 1,
            depth=self.times if self.axis == "depth" else 1,
        )

    def problems(self) -> Iterator[Problem]:
        """See `Task`."""
        yield from super().problems()
        (phase,) = self.phases
        if phase.batch * phase.context > phase.tokens and self.times > 1:
            tokens = f"{phase.batch:,} sequences of {phase.context:,} tokens, more than the phase has: {phase.tokens:,}"
            yield Problem(
                f"a step has {tokens}", f"--{self.axis}-times {self.times}", hint="fewer times, or more tokens"
            )

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The first phase, grown, with another rate. A larger batch has as many tokens, in fewer steps."""
        phase = self.loaded.recipe.phases[0]
        rate = phase.optimizer.learning_rate * self.rate
        update: dict[str, object] = {"optimizer": phase.optimizer.model_copy(update={"learning_rate": rate})}
        if self.axis == "batch":
            update["batch"] = phase.batch * self.times
        if self.axis == "tokens":
            update["tokens"] = phase.tokens * self.times
        return (phase.model_copy(update=update),)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Runs of a comparison: growths along one axis, factors on the recipe's rate, seeds."""

    axis: GrowthAxis
    times: Sequence[int]
    rates: Sequence[float]
    seeds: Sequence[int]
