"""Schema of the SwiGLU feed-forward layer."""

from typing import Literal

from l4spec.layers.base import InnerWidthSpec, LayerSize
from l4spec.layers.common.gate_clamp import GateClamp


class SwiGLUSpec(InnerWidthSpec):
    """Gated feed-forward layer, (SiLU(x W_gate) * (x W_up)) W_down (Shazeer 2020, arXiv:2002.05202)."""

    kind: Literal["swiglu"]
    intermediate_size: LayerSize
    """Width between the two projections."""
    bias: bool = False
    """Biases on all three projections."""
    clamp: GateClamp | None = None
    """Clamps of gate and product (MiniMax-M3, DeepSeek-V4)."""
