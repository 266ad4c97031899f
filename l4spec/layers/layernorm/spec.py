"""Schema of LayerNorm."""

from typing import Literal

from l4spec.layers.base import LayerSpec, PositiveFloat


class LayerNormSpec(LayerSpec):
    """Layer norm (x - mean) / sqrt(var + eps) * weight + bias (arXiv:1607.06450)."""

    kind: Literal["layernorm"]
    eps: PositiveFloat
    """Added to the variance."""
    bias: bool = True
    """Add a learned bias."""
