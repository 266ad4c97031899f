"""Schema of the patch embedding of a vision tower."""

from typing import Literal, Self

from pydantic import model_validator

from l4spec.layers.base import LayerSpec, Size


class PatchEmbeddingSpec(LayerSpec):
    """Cuts an image tile into square patches, projects each to a vector, and adds a class token."""

    kind: Literal["patch_embedding"]
    image_size: Size
    """Height and width of a tile in pixels."""
    patch_size: Size
    """Height and width of a patch in pixels."""
    num_channels: Size = 3
    """Colour channels."""
    temporal_patch_size: Size = 1
    """Frames of a patch; a still image is repeated that many times (Qwen3-VL: 2)."""
    class_token: Literal["first", "last", "none"] = "none"
    """Position of a learned class token among the patches (Llama 4: last)."""
    bias: bool = False
    """Bias of the projection."""

    @property
    def kernel(self) -> tuple[int, int, int, int]:
        """Channels, frames, rows and columns of a patch, in the order in which the projection reads them."""
        return (self.num_channels, self.temporal_patch_size, self.patch_size, self.patch_size)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens of one tile inside the tower, the class token included."""
        return self.grid**2 + (self.class_token != "none")

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")
        return self
