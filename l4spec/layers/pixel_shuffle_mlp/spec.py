"""Schema of the adapter after a vision tower: pixel shuffle, then an MLP."""

from typing import Literal, Self

from pydantic import model_validator

from l4spec.layers.base import InnerWidthSpec, LayerSize, PositiveFloat


class PixelShuffleMLPSpec(InnerWidthSpec):
    """Drops the class token, folds neighbouring patches into channels, then applies a two-layer MLP (Llama 4).

    A ratio of 0.5 turns a grid of 24 x 24 x 1408 into 12 x 12 x 5632. The activation follows both layers.
    """

    kind: Literal["pixel_shuffle_mlp"]
    pixel_shuffle_ratio: PositiveFloat
    """Shrinkage of the grid along each side: 1, 0.5, 0.25 …"""
    intermediate_size: LayerSize
    """Width between the two layers."""
    output_size: LayerSize
    """Width that the projector reads."""
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    """Activation after both layers."""
    bias: bool = False
    """Biases on both layers."""

    @property
    def fold(self) -> int:
        """Patches along one side that become one."""
        return round(1 / self.pixel_shuffle_ratio)

    @model_validator(mode="after")
    def _whole_fold(self) -> Self:
        if self.pixel_shuffle_ratio > 1 or abs(1 / self.pixel_shuffle_ratio - self.fold) > 1e-9:
            raise ValueError(f"pixel_shuffle_ratio must be 1 / a whole number, found {self.pixel_shuffle_ratio}")
        return self
