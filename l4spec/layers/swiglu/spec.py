"""Schema of the SwiGLU feed-forward layer."""

from typing import Literal, Self

from l4spec.layers.base import LayerSpec, Size


class SwiGLUSpec(LayerSpec):
    """Gated feed-forward layer, (SiLU(x W_gate) * (x W_up)) W_down (Shazeer 2020, arXiv:2002.05202)."""

    kind: Literal["swiglu"]
    intermediate_size: Size
    """Width between the two projections."""
    bias: bool = False
    """Biases on all three projections."""

    def narrowed(self, tp: int) -> Self:
        """The width between the two projections divided."""
        return self.model_copy(update={"intermediate_size": self.intermediate_size // tp})
