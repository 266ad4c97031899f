"""Schema of RMSNorm."""

from typing import Literal

from l4spec.layers.base import LayerSpec, PositiveFloat


class RMSNormSpec(LayerSpec):
    """Root-mean-square norm x / sqrt(mean(x^2) + eps) * weight, in fp32 (arXiv:1910.07467)."""

    kind: Literal["rmsnorm"]
    eps: PositiveFloat
    """Added to the mean square."""
    unit_offset: bool = False
    """Multiply by 1 + weight instead of weight (Gemma)."""
