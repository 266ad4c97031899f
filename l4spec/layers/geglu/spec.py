"""Schema of the GeGLU feed-forward layer."""

from typing import Literal

from l4spec.layers.base import InnerWidthSpec, LayerSize


class GeGLUSpec(InnerWidthSpec):
    """Gated feed-forward layer, (GELU(x W_gate) * (x W_up)) W_down (Shazeer 2020, arXiv:2002.05202)."""

    kind: Literal["geglu"]
    intermediate_size: LayerSize
    """Width between the two projections."""
    approximate: Literal["tanh", "none"] = "tanh"
    """GELU by its tanh approximation (Gemma) or exactly."""
    bias: bool = False
    """Biases on all three projections."""
