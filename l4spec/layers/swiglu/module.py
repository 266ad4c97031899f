"""The torch module of SwiGLU."""

from l4spec.layers.base import Width
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.layers.torch_common import GatedFFN


class SwiGLU(GatedFFN):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, spec: SwiGLUSpec, width: Width) -> None:
        super().__init__(width.hidden_size, spec.intermediate_size, "silu", bias=spec.bias)
