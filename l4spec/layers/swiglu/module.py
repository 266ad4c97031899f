"""The torch module of SwiGLU."""

from l4spec.layers.base import Width
from l4spec.layers.common.modules import GatedFFN
from l4spec.layers.swiglu.spec import SwiGLUSpec


class SwiGLU(GatedFFN):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, spec: SwiGLUSpec, width: Width) -> None:
        super().__init__(width.hidden_size, spec.intermediate_size, "silu", bias=spec.bias, clamp=spec.clamp)
