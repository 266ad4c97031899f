"""The torch module of the patch embedding."""

import torch
from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, Linear, empty
from l4spec.layers.patch_embedding.spec import PatchEmbeddingSpec


class PatchEmbedding(LayerModule):
    """Patches in row-major order, each flattened as (channel, row, column) and projected; then the class token."""

    def __init__(self, spec: PatchEmbeddingSpec, width: Width) -> None:
        super().__init__()
        self.spec = spec
        self.proj = Linear(spec.num_channels * spec.patch_size**2, width.hidden_size, bias=spec.bias)
        self.class_token = empty(width.hidden_size) if spec.class_token != "none" else None

    def forward(self, pixel_values: Tensor, *, context: Context) -> Tensor:
        """Tiles [tiles, channels, image_size, image_size] to [tiles, patches (+ 1), hidden]."""
        size, grid = self.spec.patch_size, self.spec.grid
        tiles, channels = pixel_values.shape[:2]
        cut = pixel_values.reshape(tiles, channels, grid, size, grid, size)
        patches: Tensor = self.proj(cut.permute(0, 2, 4, 1, 3, 5).reshape(tiles, grid * grid, -1))
        if self.class_token is None:
            return patches
        token = self.class_token.expand(patches.shape[0], 1, -1)
        return torch.cat((patches, token) if self.spec.class_token == "last" else (token, patches), dim=1)
