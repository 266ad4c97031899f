"""Multi-token prediction in a phase: the weight of the modules' loss, and when it changes."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from l4spec.layers.base import Spec
from l4spec.spec.header import located
from l4spec.spec.quantities import Share

MTPWeight = Annotated[float, Field(ge=0, le=10)]


class MTPPhaseSpec(Spec):
    """Training of the modules that the spec declares in `text.mtp` (DeepSeek-V3, arXiv:2412.19437, section 2.2)."""

    weight: MTPWeight
    """Factor on the mean of the modules' cross entropies, which is added to the loss (DeepSeek-V3: 0.3)."""
    final_weight: MTPWeight | None = None
    """Factor of the last steps (DeepSeek-V3: 0.1); null: `weight` throughout."""
    final_from: Share | None = None
    """Share of the phase's steps after which `final_weight` is the factor (DeepSeek-V3: 10T of 14.8T tokens, 0.676)."""

    @model_validator(mode="after")
    def _both_say_how_it_ends(self) -> Self:
        if (self.final_weight is None) != (self.final_from is None):
            there = "final_weight" if self.final_from is None else "final_from"
            raise located((there,), "final_weight and final_from belong together", "give both, or neither")
        return self

    def weight_at(self, step: int, num_steps: int) -> float:
        """The factor in step `step` of `num_steps`, counted from 0."""
        if self.final_weight is None or self.final_from is None or step < self.final_from * num_steps:
            return self.weight
        return self.final_weight
