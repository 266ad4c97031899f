"""Top-k key selection by an index of small keys, for sparse attention (DeepSeek-V3.2, arXiv:2512.02556)."""

from typing import Protocol

import torch
from torch import Tensor

from l4spec.layers.common.modules import wide


class IndexSizes(Protocol):
    """Heads of an index, their width, and the number of keys that a query attends to."""

    @property
    def index_num_heads(self) -> int:
        """Heads, which share one key."""

    @property
    def index_head_dim(self) -> int:
        """Width of a head."""

    @property
    def index_topk(self) -> int:
        """Keys that a query attends to."""


@torch.no_grad()
def selected_keys(spec: IndexSizes, query: Tensor, weights: Tensor, key: Tensor, seen: Tensor | None) -> Tensor:
    """Mask of the keys that each query attends to, bool [batch, queries, keys]: the best `index_topk` of those in
    `seen`.

    `query` is [batch, queries, heads * width], `weights` [batch, queries, heads], `key` [batch, keys, width].
    """
    batch, num_queries, _ = query.shape
    heads = wide(query).reshape(batch, num_queries * spec.index_num_heads, spec.index_head_dim)
    products = (heads @ wide(key).transpose(1, 2)).view(batch, num_queries, spec.index_num_heads, -1)
    scale = spec.index_head_dim**-0.5
    weights = wide(weights)[:, :, None] * spec.index_num_heads**-0.5
    scores = (weights @ (products * scale).relu())[:, :, 0]
    if seen is not None:
        seen = seen if seen.dim() == 2 else seen[:, 0]
        scores = scores.masked_fill(~seen, float("-inf"))
    best = scores.topk(min(spec.index_topk, scores.shape[-1]), dim=-1).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, value=True)
    return chosen if seen is None else chosen & seen
