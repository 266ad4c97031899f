"""The torch module of multi-head latent attention."""

import torch
from torch import Tensor

from l4spec.layers.attention.compute import Attention
from l4spec.layers.attention.positions import Rope, YarnScaling
from l4spec.layers.attention.rope import Rotation, yarn_scale
from l4spec.layers.base import Width
from l4spec.layers.common.cache import Rows, split_last
from l4spec.layers.common.modules import Context, LayerModule, Linear, Norm, group_last
from l4spec.layers.mla.cost import absorbs
from l4spec.layers.mla.spec import MLASpec


class MLA(LayerModule):
    """Keys and values are expanded from a latent, which is all that is cached.

    A few queries after a long past do not expand it: the expansion is absorbed into the query and the output instead
    (DeepSeek-V2, arXiv:2405.04434, section 2.1.2).
    """

    def __init__(self, spec: MLASpec, width: Width) -> None:
        super().__init__()
        self.spec = spec
        hidden, qk_dim = width.hidden_size, spec.qk_nope_head_dim + spec.qk_rope_head_dim
        if spec.q_lora_rank is None:
            self.q_proj = Linear(hidden, spec.num_heads * qk_dim, bias=False)
        else:
            self.q_a_proj = Linear(hidden, spec.q_lora_rank, bias=spec.bias)
            self.q_a_norm = Norm(spec.q_lora_rank, spec.norm_eps)
            self.q_b_proj = Linear(spec.q_lora_rank, spec.num_heads * qk_dim, bias=False)
        self.kv_a_proj = Linear(hidden, spec.kv_lora_rank + spec.qk_rope_head_dim, bias=spec.bias)
        self.kv_a_norm = Norm(spec.kv_lora_rank, spec.norm_eps)
        expanded = spec.qk_nope_head_dim + spec.v_head_dim
        self.kv_b_proj = Linear(spec.kv_lora_rank, spec.num_heads * expanded, bias=False)
        self.o_proj = Linear(spec.num_heads * spec.v_head_dim, hidden, bias=spec.bias)
        self.rotation = _rotation(spec)
        kept = (spec.kv_lora_rank + spec.qk_rope_head_dim,)
        self.expanded = Attention(spec.mask, _scale(spec), kept, self._expand)
        self.absorbed = Attention(spec.mask, _scale(spec), kept, _as_single_head)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to [batch, tokens, hidden]."""
        nope, rope = split_last(self._query(x), (self.spec.qk_nope_head_dim, self.spec.qk_rope_head_dim))
        latent, shared_key = split_last(self.kv_a_proj(x), (self.spec.kv_lora_rank, self.spec.qk_rope_head_dim))
        shared_key = shared_key[:, :, None]
        if self.rotation is not None:
            rope, shared_key = self.rotation(rope, context), self.rotation(shared_key, context)
        rows = (torch.cat((self.kv_a_norm(latent), shared_key[:, :, 0]), dim=-1),)
        cache = context.cache_of(self.node_id)
        if context.caches is not None and absorbs(self.spec, x.shape[1], context.layout.start):
            key_weight, value_weight = self._expansions()
            query = torch.cat((through_heads(nope, key_weight), rope), dim=-1)
            latents = self.absorbed(query, rows, context, cache)[..., : self.spec.kv_lora_rank]
            attended = through_heads(latents, value_weight.transpose(1, 2))
        else:
            attended = self.expanded(torch.cat((nope, rope), dim=-1), rows, context, cache)
        result: Tensor = self.o_proj(attended.flatten(-2))
        return result

    def _query(self, x: Tensor) -> Tensor:
        """[batch, tokens, heads, nope + rope]."""
        flat = self.q_proj(x) if self.spec.q_lora_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        return group_last(flat, self.spec.num_heads, -1)

    def _expansions(self) -> tuple[Tensor, Tensor]:
        """Weights of keys [heads, nope, rank] and of values [heads, v, rank]."""
        weight = self.kv_b_proj.weight.view(self.spec.num_heads, -1, self.spec.kv_lora_rank)
        return weight[:, : self.spec.qk_nope_head_dim], weight[:, self.spec.qk_nope_head_dim :]

    def _expand(self, rows: Rows) -> tuple[Tensor, Tensor]:
        spec = self.spec
        latent, shared_key = split_last(rows[0], (spec.kv_lora_rank, spec.qk_rope_head_dim))
        by_head = group_last(self.kv_b_proj(latent), spec.num_heads, -1).transpose(1, 2)
        key, value = split_last(by_head, (spec.qk_nope_head_dim, spec.v_head_dim))
        return torch.cat((key, shared_key[:, None].expand(-1, spec.num_heads, -1, -1)), dim=-1), value


def _rotation(spec: MLASpec) -> Rotation | None:
    if not isinstance(spec.position, Rope):
        return None
    return Rotation.of(spec.position, spec.qk_rope_head_dim, spec.qk_nope_head_dim, spec.kv_lora_rank)


def through_heads(x: Tensor, weight: Tensor) -> Tensor:
    """x [batch, tokens, heads, in] through a matrix per head [heads, in, out]: [batch, tokens, heads, out]."""
    batch, tokens, heads, _ = x.shape
    rows = x.permute(2, 0, 1, 3).reshape(heads, batch * tokens, -1)
    return (rows @ weight).view(heads, batch, tokens, -1).permute(1, 2, 0, 3)


def _as_single_head(rows: Rows) -> tuple[Tensor, Tensor]:
    """Latent and shared key as the one key head of all queries, and as its value: the caller drops the key part."""
    single = rows[0][:, None]
    return single, single


def _scale(spec: MLASpec) -> float:
    """(nope + rope)^-0.5, times YaRN's squared temperature where the spec names mscale_all_dim (DeepSeek)."""
    scale = float((spec.qk_nope_head_dim + spec.qk_rope_head_dim) ** -0.5)
    scaling = spec.position.scaling if isinstance(spec.position, Rope) else None
    if isinstance(scaling, YarnScaling) and scaling.mscale_all_dim:
        return scale * yarn_scale(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale
