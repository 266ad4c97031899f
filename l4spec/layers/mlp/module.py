"""The torch module of the plain two-layer feed-forward network."""

from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, Linear, activation
from l4spec.layers.mlp.spec import MLPSpec


class MLP(LayerModule):
    """down(act(up(x)))."""

    def __init__(self, spec: MLPSpec, width: Width) -> None:
        super().__init__()
        self.up_proj = Linear(width.hidden_size, spec.intermediate_size, bias=spec.bias)
        self.down_proj = Linear(spec.intermediate_size, width.hidden_size, bias=spec.bias)
        self.act = activation(spec.activation)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[..., hidden] to [..., hidden]."""
        result: Tensor = self.down_proj(self.act(self.up_proj(x)))
        return result
