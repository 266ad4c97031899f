"""Schema of the SwiGLU feed-forward layer."""

from typing import Literal

from l4spec.layers.base import InnerWidthSpec, Size


class SwiGLUSpec(InnerWidthSpec):
    """Gated feed-forward layer, (SiLU(x W_gate) * (x W_up)) W_down (Shazeer 2020, arXiv:2002.05202)."""

    kind: Literal["swiglu"]
    intermediate_size: Size
    """Width between the two projections."""
    bias: bool = False
    """Biases on all three projections."""
