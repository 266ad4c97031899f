"""The torch module of residual addition."""

from torch import Tensor

from l4spec.layers.add.spec import AddSpec
from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule


class Add(LayerModule):
    """Sum of its inputs, from left to right."""

    def __init__(self, spec: AddSpec, width: Width) -> None:
        super().__init__()

    def forward(self, *inputs: Tensor, context: Context) -> Tensor:
        """Tensors of one shape to their sum."""
        total = inputs[0]
        for term in inputs[1:]:
            total = total + term
        return total
