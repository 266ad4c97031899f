"""The torch module of the patch embedding."""

from math import prod

import torch
from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, Linear, empty
from l4spec.layers.patch_embedding.spec import PatchEmbeddingSpec


class PatchEmbedding(LayerModule):
    """Patches in row-major order, each flattened as (channel, frame, row, column) and projected; then the class token.

    A patch over several frames sees the same image in all of them.
    """

    def __init__(self, spec: PatchEmbeddingSpec, width: Width) -> None:
        super().__init__()
        self.spec = spec
        self.proj = Linear(prod(spec.kernel), width.hidden_size, bias=spec.bias)
        self.class_token = empty(width.hidden_size) if spec.class_token != "none" else None

    def forward(self, pixel_values: Tensor, *, context: Context) -> Tensor:
        """Tiles [tiles, channels, height, width] to [tiles, patches (+ 1), hidden]."""
        size, frames = self.spec.patch_size, self.spec.temporal_patch_size
        tiles, channels, height, width = pixel_values.shape
        rows, columns = height // size, width // size
        cut = pixel_values.reshape(tiles, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        if frames > 1:
            cut = cut[:, :, :, :, None].expand(-1, -1, -1, -1, frames, -1, -1)
        patches: Tensor = self.proj(cut.reshape(tiles, rows * columns, -1))
        if self.class_token is None:
            return patches
        token = self.class_token.expand(patches.shape[0], 1, -1)
        return torch.cat((patches, token) if self.spec.class_token == "last" else (token, patches), dim=1)
