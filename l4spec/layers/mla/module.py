"""The torch module of multi-head latent attention."""

import torch
from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.masks import NoMask
from l4spec.layers.mla.spec import MLASpec
from l4spec.layers.positions import Rope, YarnScaling
from l4spec.layers.torch_attention import Attention
from l4spec.layers.torch_cache import Rows
from l4spec.layers.torch_common import Context, LayerModule, Linear, Norm
from l4spec.layers.torch_rope import Rotation, yarn_scale


class MLA(LayerModule):
    """Keys and values are expanded from a latent, which is all that is cached.

    A few queries behind a long past do not expand it: the expansion is absorbed into the query and the output instead
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
        self.rotation = Rotation.of(spec.position, spec.qk_rope_head_dim) if isinstance(spec.position, Rope) else None
        kept = (spec.kv_lora_rank + spec.qk_rope_head_dim,)
        self.expanded = Attention(spec.mask, _scale(spec), kept, self._expand)
        self.absorbed = Attention(spec.mask, _scale(spec), kept, _as_single_head)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to [batch, tokens, hidden]."""
        nope, rope = self._query(x).split((self.spec.qk_nope_head_dim, self.spec.qk_rope_head_dim), dim=-1)
        latent, shared_key = self.kv_a_proj(x).split((self.spec.kv_lora_rank, self.spec.qk_rope_head_dim), dim=-1)
        shared_key = shared_key[:, :, None]
        if self.rotation is not None:
            rope, shared_key = self.rotation(rope, context), self.rotation(shared_key, context)
        rows = (torch.cat((self.kv_a_norm(latent), shared_key[:, :, 0]), dim=-1),)
        cache = context.cache_of(self.node_id)
        if self._absorbs(x.shape[1], context):
            latents = self.absorbed(self._absorb(nope, rope), rows, context, cache)[..., : self.spec.kv_lora_rank]
            attended = torch.einsum("bthr,hvr->bthv", latents, self._expansions()[1])
        else:
            attended = self.expanded(torch.cat((nope, rope), dim=-1), rows, context, cache)
        result: Tensor = self.o_proj(attended.flatten(-2))
        return result

    def _query(self, x: Tensor) -> Tensor:
        """[batch, tokens, heads, nope + rope]."""
        flat = self.q_proj(x) if self.spec.q_lora_rank is None else self.q_b_proj(self.q_a_norm(self.q_a_proj(x)))
        query: Tensor = flat.unflatten(-1, (self.spec.num_heads, -1))
        return query

    def _absorbs(self, num_queries: int, context: Context) -> bool:
        """Whether absorbing is cheaper than expanding a past.

        Per cached token and head, attention over the latent costs (2 * rank - nope - v) more multiply-adds a query,
        expanding costs rank * (nope + v) once.
        """
        spec = self.spec
        if context.caches is None or context.layout.start == 0 or isinstance(spec.mask, NoMask):
            return False
        expanded = spec.qk_nope_head_dim + spec.v_head_dim
        return num_queries * (2 * spec.kv_lora_rank - expanded) < spec.kv_lora_rank * expanded

    def _expansions(self) -> tuple[Tensor, Tensor]:
        """Weights of keys [heads, nope, rank] and of values [heads, v, rank]."""
        weight = self.kv_b_proj.weight.view(self.spec.num_heads, -1, self.spec.kv_lora_rank)
        key, value = weight.split((self.spec.qk_nope_head_dim, self.spec.v_head_dim), dim=1)
        return key, value

    def _absorb(self, nope: Tensor, rope: Tensor) -> Tensor:
        key_weight, _ = self._expansions()
        return torch.cat((torch.einsum("bthn,hnr->bthr", nope, key_weight), rope), dim=-1)

    def _expand(self, rows: Rows) -> tuple[Tensor, Tensor]:
        spec = self.spec
        latent, shared_key = rows[0].split((spec.kv_lora_rank, spec.qk_rope_head_dim), dim=-1)
        by_head = self.kv_b_proj(latent).unflatten(-1, (spec.num_heads, -1)).transpose(1, 2)
        key, value = by_head.split((spec.qk_nope_head_dim, spec.v_head_dim), dim=-1)
        return torch.cat((key, shared_key[:, None].expand(-1, spec.num_heads, -1, -1)), dim=-1), value


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
