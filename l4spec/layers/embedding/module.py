"""The torch module of the token embedding."""

import torch
from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, empty
from l4spec.layers.embedding.spec import EmbeddingSpec


class Embedding(LayerModule):
    """A row of the table per token, with the spec's scale."""

    def __init__(self, spec: EmbeddingSpec, width: Width) -> None:
        super().__init__()
        self.weight = empty(spec.vocab_size, width.hidden_size)
        self.scale = spec.scale

    def forward(self, input_ids: Tensor, *, context: Context) -> Tensor:
        """Token ids [batch, tokens] to [batch, tokens, hidden]; the scale is rounded to the weights' dtype first."""
        rows = torch.nn.functional.embedding(input_ids, self.weight)
        return rows if self.scale is None else rows * torch.tensor(self.scale, dtype=rows.dtype, device=rows.device)
