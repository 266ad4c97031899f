"""The torch module of GeGLU."""

from l4spec.layers.base import Width
from l4spec.layers.common.modules import GatedFFN
from l4spec.layers.geglu.spec import GeGLUSpec


class GeGLU(GatedFFN):
    """down(gelu(gate(x)) * up(x))."""

    def __init__(self, spec: GeGLUSpec, width: Width) -> None:
        act = "gelu_tanh" if spec.approximate == "tanh" else "gelu"
        super().__init__(width.hidden_size, spec.intermediate_size, act, bias=spec.bias)
