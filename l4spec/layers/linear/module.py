"""The torch module of a single linear layer."""

from torch import Tensor, nn

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule
from l4spec.layers.common.modules import Linear as Projection
from l4spec.layers.linear.spec import LinearSpec


class LinearLayer(LayerModule):
    """y = x W^T, with a bias if declared."""

    def __init__(self, spec: LinearSpec, width: Width) -> None:
        super().__init__()
        self.proj: nn.Linear = Projection(width.hidden_size, spec.output_size, bias=spec.bias)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[..., hidden] to [..., output]."""
        result: Tensor = self.proj(x)
        return result
