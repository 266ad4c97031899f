"""Schema of the switch layer."""

from typing import Literal, Self

from l4spec.layers.base import InnerWidthSpec, Size


class SwitchSpec(InnerWidthSpec):
    """Each token goes through one of `num_experts` ReLU networks, scaled by its probability (arXiv:2101.03961)."""

    kind: Literal["switch"]
    num_experts: Size
    """Experts, of which each token uses the likeliest."""
    intermediate_size: Size
    """Width of an expert."""

    def narrowed(self, tp: int) -> Self:
        """Every expert's width divided; the router is whole."""
        return self.model_copy(update={"intermediate_size": self.intermediate_size // tp})
