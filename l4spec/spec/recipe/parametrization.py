"""Parametrization: how initial scales and learning rates follow a model's size, so that they transfer."""

from typing import Annotated, Literal, Self

from pydantic import model_validator

from l4spec.layers.base import AsTuple, Size, Spec
from l4spec.spec.header import located
from l4spec.spec.quantities import TrainTokens


class BaseSizes(Spec):
    """Sizes of the base model and its run, for which the recipe states the learning rate: there every factor is 1."""

    set: Annotated[tuple[str, ...], AsTuple] = ()
    """Changes of the recipe's model, `path=value`, that make the base model of it."""
    batch: Size | None = None
    """Sequences per step of the base run; null: the same number."""
    tokens: TrainTokens | None = None
    """Tokens of the phase in the base run; null: the same number."""


class Parametrization(Spec):
    """Rule of scales and learning rates, and the sizes that it starts from."""

    kind: Literal["standard", "mup", "completedp"] = "standard"
    """`standard`: one rate and one deviation for all. `mup`: over width (arXiv:2203.03466). `completedp`: over width,
    depth, batch and tokens (arXiv:2505.01618, arXiv:2512.22382)."""
    base: BaseSizes = BaseSizes()
    """Reference sizes, at which every factor is 1."""

    @model_validator(mode="after")
    def _rule_knows_its_axes(self) -> Self:
        if self.kind != "completedp" and (self.base.batch is not None or self.base.tokens is not None):
            raise located(("base",), f"{self.kind} has no rule for batch and tokens", "kind: completedp has")
        return self
