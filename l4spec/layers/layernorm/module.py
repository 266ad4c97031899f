"""The torch module of LayerNorm."""

from torch import Tensor, nn

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, empty
from l4spec.layers.layernorm.spec import LayerNormSpec


class LayerNorm(LayerModule):
    """(x - mean) / sqrt(var + eps) * weight (+ bias) over the last dimension."""

    def __init__(self, spec: LayerNormSpec, width: Width) -> None:
        super().__init__()
        self.weight = empty(width.hidden_size)
        self.bias = empty(width.hidden_size) if spec.bias else None
        self.eps = spec.eps

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[..., hidden] to [..., hidden]."""
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
