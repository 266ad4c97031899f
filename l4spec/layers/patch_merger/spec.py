"""Schema of the adapter that norms patches, folds neighbours into one, and projects them."""

from typing import Literal

from l4spec.layers.base import LayerSize, LayerSpec, PositiveFloat


class PatchMergerSpec(LayerSpec):
    """Norms patches, merges fold x fold into one, applies a linear layer and GELU; the projector follows (Qwen3-VL)."""

    kind: Literal["patch_merger"]
    spatial_merge_size: LayerSize
    """Patches along one side that become one."""
    output_size: LayerSize
    """Width that the projector reads."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """LayerNorm with a bias (Qwen3-VL), or RMSNorm (Qwen2.5-VL)."""
    eps: PositiveFloat
    """Added to the variance."""
    norms: Literal["patches", "folded"] = "patches"
    """Vectors that are normed: single patches, or the merged ones (Qwen3-VL's mergers of single blocks)."""
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    """Activation after the layer."""
    bias: bool = True
    """Bias of the layer."""

    @property
    def fold(self) -> int:
        """Patches along one side that become one."""
        return self.spatial_merge_size
