"""The torch module of residual addition."""

import torch
from torch import Tensor

from l4spec.layers.add.spec import AddSpec
from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule


class Add(LayerModule):
    """Sum of its inputs, from left to right, times its factor if it has one."""

    factor: Tensor | None

    def __init__(self, spec: AddSpec, width: Width) -> None:
        super().__init__()
        self.register_buffer("factor", torch.empty(1) if spec.scaled else None)

    def forward(self, *inputs: Tensor, context: Context) -> Tensor:
        """Tensors of one shape to their sum."""
        total = inputs[0]
        for term in inputs[1:]:
            total = total + term
        if self.factor is None:
            return total
        return total * self.factor if torch.is_grad_enabled() else total.mul_(self.factor)
