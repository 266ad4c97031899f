"""The torch module of a concatenation."""

import torch
from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule
from l4spec.layers.concat.spec import ConcatSpec


class Concat(LayerModule):
    """Its inputs side by side, in the order of their ports."""

    def __init__(self, spec: ConcatSpec, width: Width) -> None:
        super().__init__()

    def forward(self, *inputs: Tensor, context: Context) -> Tensor:
        """Tensors [..., hidden] to [..., inputs * hidden]."""
        return torch.cat(inputs, dim=-1)
