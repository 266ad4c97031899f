"""The torch module of RMSNorm."""

from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, empty, rms_norm
from l4spec.layers.rmsnorm.spec import RMSNormSpec


class RMSNorm(LayerModule):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, normalised in fp32."""

    def __init__(self, spec: RMSNormSpec, width: Width) -> None:
        super().__init__()
        self.weight = empty(width.hidden_size)
        self.eps = spec.eps
        self.unit_offset = spec.unit_offset

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[..., hidden] to [..., hidden]."""
        return rms_norm(x, self.weight, self.eps, unit_offset=self.unit_offset)
