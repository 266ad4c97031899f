"""The torch module of the plain two-layer feed-forward network."""

from l4spec.layers.base import Width
from l4spec.layers.common.modules import PlainFFN
from l4spec.layers.mlp.spec import MLPSpec


class MLP(PlainFFN):
    """down(act(up(x)))."""

    def __init__(self, spec: MLPSpec, width: Width) -> None:
        super().__init__(width.hidden_size, spec.intermediate_size, spec.activation, bias=spec.bias)
