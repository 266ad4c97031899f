"""The torch module of sparse multi-head latent attention."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l4spec.layers.attention.compute import Attention
from l4spec.layers.attention.key_selection import selected_keys
from l4spec.layers.attention.positions import Rope
from l4spec.layers.attention.rope import Rotation
from l4spec.layers.attention.walk import BLOCK
from l4spec.layers.base import Width
from l4spec.layers.common.cache import LayerCache, Rows, split_last
from l4spec.layers.common.modules import Context, Linear, empty, group_last
from l4spec.layers.mla.cost import absorbs
from l4spec.layers.mla.module import MLA, through_heads
from l4spec.layers.sparse_mla.spec import SparseMLASpec

_NORM_EPS = 1e-6
"""Of the norm of index keys, fixed in the reference."""


class IndexNorm(nn.Module):
    """LayerNorm of index keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = empty(width), empty(width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, _NORM_EPS)


@dataclass(frozen=True, slots=True)
class IndexedAttention(Attention):
    """Attention to tokens that an index chooses, with queries and index queries as one vector.

    A query [.., 1, heads * width + index heads * index width + index heads] is those of all heads, those of the index,
    and the weight of each index head. Cached rows are a latent and its index key; `inner` computes keys and values from
    latents, [batch, heads, tokens, width].
    """

    inner: Callable[[Rows], tuple[Tensor, Tensor]] | None = None
    spec: SparseMLASpec | None = None
    value_width: int = 0

    def __call__(self, query: Tensor, new: Rows, context: Context, cache: LayerCache | None) -> Tensor:
        """[batch, tokens, 1, heads * width of a value]."""
        if cache is not None and cache.defers:
            return cache.defer(self, query, new, self.value_width)
        return Attention.__call__(self, query, new, context, cache)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, allowed: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Bands of BLOCK queries, each with the keys up to its last: `query` [batch, 1, tokens, all heads]."""
        assert self.spec is not None and self.inner is not None, "set where a layer is made"
        latent, index_key = split_last(key[:, 0], (key.shape[-1] - self.spec.index_head_dim, self.spec.index_head_dim))
        keys, values = self.inner((latent,))
        num_queries, results = query.shape[2], []
        for first in range(0, num_queries, BLOCK):
            last = min(first + BLOCK, num_queries)
            high = last if causal else key.shape[2]
            seen = _earlier(first, last, query.device) if causal else _rows_of(allowed, first, last)
            band = query[:, 0, first:last]
            results.append(self._band(band, keys[:, :, :high], values[:, :, :high], index_key[:, :high], seen))
        return results[0] if len(results) == 1 else torch.cat(results, dim=2)

    def _band(self, query: Tensor, key: Tensor, value: Tensor, index_key: Tensor, seen: Tensor | None) -> Tensor:
        spec = self.spec
        assert spec is not None
        asked = spec.index_num_heads * spec.index_head_dim
        own = query.shape[-1] - asked - spec.index_num_heads
        query, index_query, weights = split_last(query, (own, asked, spec.index_num_heads))
        chosen = selected_keys(spec, index_query, weights, index_key, seen)
        by_head = group_last(query, spec.num_heads, -1).transpose(1, 2)
        attended = Attention._attend(self, by_head, key, value, allowed=chosen[:, None])
        return attended.transpose(1, 2).flatten(-2)[:, None]


def _earlier(first: int, last: int, device: torch.device) -> Tensor:
    """Queries from `first` on that see keys up to their own place, [queries, last]."""
    place = torch.arange(first, last, device=device)[:, None]
    return torch.arange(last, device=device) <= place


def _rows_of(allowed: Tensor | None, first: int, last: int) -> Tensor | None:
    return None if allowed is None else allowed[..., first:last, :]


class SparseMLA(MLA):
    """Latent attention whose queries attend to the tokens that an index chooses; the index has no gradient."""

    def __init__(self, spec: SparseMLASpec, width: Width) -> None:
        super().__init__(spec.dense(), width)
        assert spec.q_lora_rank is not None, "checked by the schema"
        self.index = spec
        self.index_q_proj = Linear(spec.q_lora_rank, spec.index_num_heads * spec.index_head_dim, bias=False)
        self.index_k_proj = Linear(width.hidden_size, spec.index_head_dim, bias=False)
        self.index_k_norm = IndexNorm(spec.index_head_dim)
        self.index_weights_proj = Linear(width.hidden_size, spec.index_num_heads, bias=False)
        self.index_rotation = _index_rotation(spec)
        expanded, absorbed = self.expanded, self.absorbed
        latent = spec.kv_lora_rank + spec.qk_rope_head_dim
        self.expanded = _indexed(expanded, spec, spec.num_heads * spec.v_head_dim)
        self.absorbed = _indexed(absorbed, spec, spec.num_heads * latent)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to [batch, tokens, hidden]."""
        spec = self.spec
        asking = self.q_a_norm(self.q_a_proj(x))
        query = group_last(self.q_b_proj(asking), spec.num_heads, -1)
        nope, rope = split_last(query, (spec.qk_nope_head_dim, spec.qk_rope_head_dim))
        latent, shared_key = split_last(self.kv_a_proj(x), (spec.kv_lora_rank, spec.qk_rope_head_dim))
        shared_key = shared_key[:, :, None]
        if self.rotation is not None:
            rope, shared_key = self.rotation(rope, context), self.rotation(shared_key, context)
        asked, index_key = self._asked(x, asking, context)
        rows = (torch.cat((self.kv_a_norm(latent), shared_key[:, :, 0], index_key), dim=-1),)
        cache = context.cache_of(self.node_id)
        if context.caches is not None and absorbs(spec, x.shape[1], context.layout.start):
            key_weight, value_weight = self._expansions()
            packed = torch.cat((torch.cat((through_heads(nope, key_weight), rope), dim=-1).flatten(-2), asked), dim=-1)
            attended = self.absorbed(packed[:, :, None], rows, context, cache)[:, :, 0]
            latents = group_last(attended, spec.num_heads, -1)[..., : spec.kv_lora_rank]
            attended = through_heads(latents, value_weight.transpose(1, 2)).flatten(-2)
        else:
            packed = torch.cat((torch.cat((nope, rope), dim=-1).flatten(-2), asked), dim=-1)
            attended = self.expanded(packed[:, :, None], rows, context, cache)[:, :, 0]
        result: Tensor = self.o_proj(attended)
        return result

    @torch.no_grad()
    def _asked(self, x: Tensor, asking: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Index queries and the weights of its heads as one vector, and index keys [batch, tokens, width]."""
        query = group_last(self.index_q_proj(asking), self.index.index_num_heads, -1)
        key = self.index_k_norm(self.index_k_proj(x))[:, :, None]
        if self.index_rotation is not None:
            query, key = self.index_rotation(query, context), self.index_rotation(key, context)
        return torch.cat((query.flatten(-2), self.index_weights_proj(x)), dim=-1), key[:, :, 0]


def _indexed(dense: Attention, spec: SparseMLASpec, value_width: int) -> IndexedAttention:
    """The same attention, to the cached rows that the index chooses."""
    kept = (spec.kv_lora_rank + spec.qk_rope_head_dim + spec.index_head_dim,)
    return IndexedAttention(
        dense.mask, dense.scale, kept, _as_one_row, inner=dense.expand, spec=spec, value_width=value_width
    )


def _as_one_row(rows: Rows) -> tuple[Tensor, Tensor]:
    row = rows[0][:, None]
    return row, row


def _index_rotation(spec: SparseMLASpec) -> Rotation | None:
    if not isinstance(spec.position, Rope):
        return None
    position = spec.position.model_copy(update={"layout": spec.index_layout})
    return Rotation.of(position, spec.qk_rope_head_dim, spec.index_head_dim - spec.qk_rope_head_dim)
