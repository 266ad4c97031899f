"""Multi-token prediction in a phase: the weight of the modules' loss, and when it changes."""

from typing import Annotated

from pydantic import Field

from l4spec.layers.base import Spec
from l4spec.spec.quantities import Share

MTPWeight = Annotated[float, Field(ge=0, le=10)]


class MTPPhaseSpec(Spec):
    """Training of the modules that the spec declares in `text.mtp` (DeepSeek-V3, arXiv:2412.19437, section 2.2)."""

    weight: MTPWeight
    """Factor on the mean of the modules' cross entropies, which is added to the loss (DeepSeek-V3: 0.3)."""
    final_weight: MTPWeight | None = None
    """Factor of the last steps (DeepSeek-V3: 0.1); null: `weight` throughout."""
    final_from: Share = 1.0
    """Share of the phase's steps after which `final_weight` is the factor (DeepSeek-V3: 10T of 14.8T tokens, 0.676)."""

    def weight_at(self, step: int, num_steps: int) -> float:
        """The factor in step `step` of `num_steps`, counted from 0."""
        is_final = self.final_weight is not None and step >= self.final_from * num_steps
        return self.final_weight if is_final and self.final_weight is not None else self.weight
