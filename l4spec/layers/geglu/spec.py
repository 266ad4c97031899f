"""Schema of the GeGLU feed-forward layer."""

from typing import Literal, Self

from l4spec.layers.base import LayerSpec, Size


class GeGLUSpec(LayerSpec):
    """Gated feed-forward layer, (GELU(x W_gate) * (x W_up)) W_down (Shazeer 2020, arXiv:2002.05202)."""

    kind: Literal["geglu"]
    intermediate_size: Size
    """Width between the two projections."""
    approximate: Literal["tanh", "none"] = "tanh"
    """GELU by its tanh approximation (Gemma) or exactly."""
    bias: bool = False
    """Biases on all three projections."""

    def narrowed(self, tp: int) -> Self:
        """The width between the two projections divided."""
        return self.model_copy(update={"intermediate_size": self.intermediate_size // tp})
