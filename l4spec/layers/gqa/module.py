"""The torch module of grouped-query attention."""

import torch
from torch import Tensor

from l4spec.layers.attention.compute import Attention
from l4spec.layers.attention.positions import NoPosition, Rope
from l4spec.layers.attention.rope import Rotation
from l4spec.layers.base import Width
from l4spec.layers.common.cache import Rows
from l4spec.layers.common.ledger import MOST_FEW_ROWS
from l4spec.layers.common.modules import Context, LayerModule, Linear, Norm, empty, group_last, rms_norm
from l4spec.layers.gqa.spec import GQASpec, L2Norm, RMSQKNorm, Temperature


class GQA(LayerModule):
    """Projections; qk norm with weights, rotation, qk norm without, temperature; attention; gate; o projection."""

    def __init__(self, spec: GQASpec, width: Width) -> None:
        super().__init__()
        self.spec = spec
        hidden, heads, kv_heads = width.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        attended, values = spec.num_heads * spec.value_dim, spec.num_kv_heads * spec.value_dim
        self.q_proj = Linear(hidden, heads, bias=spec.qkv_bias)
        self.k_proj = Linear(hidden, kv_heads, bias=spec.qkv_bias)
        self.v_proj = None if spec.values_from_keys else Linear(hidden, values, bias=spec.qkv_bias)
        self.o_proj = Linear(attended, hidden, bias=spec.output_bias)
        if isinstance(spec.qk_norm, RMSQKNorm):
            widths = (heads, kv_heads) if spec.qk_norm.over == "width" else (spec.head_dim, spec.head_dim)
            self.q_norm, self.k_norm = (
                Norm(size, spec.qk_norm.eps, unit_offset=spec.qk_norm.unit_offset) for size in widths
            )
        if spec.output_gate is not None:
            gate = attended if spec.output_gate == "elementwise" else spec.num_heads
            self.gate_proj = Linear(hidden, gate, bias=spec.qkv_bias)
        self.sinks = empty(spec.num_heads) if spec.sinks else None
        self.rotation = _rotation(spec)
        self.attention = Attention(
            spec.mask,
            spec.head_dim**-0.5 if spec.scale is None else spec.scale,
            (kv_heads, values),
            self._heads_first,
            spec.logit_softcap,
            self._sink_logits if spec.sinks else None,
        )

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to [batch, tokens, hidden]."""
        query, key, value = self._few(x, context) if self._are_few(x) else self._each(x, context)
        if self.spec.temperature is not None:
            query = (query * _temperature(self.spec.temperature, context)).to(x.dtype)
        value = self._valued(value if self.v_proj is None else self.v_proj(x))
        rows = (key.flatten(-2), value)
        attended = self.attention(query, rows, context, context.cache_of(self.node_id))
        if self.spec.output_gate is not None:
            gate = self.gate_proj(x).sigmoid()
            attended = attended * group_last(gate, self.spec.num_heads, -1)
        result: Tensor = self.o_proj(attended.flatten(-2))
        return result

    def _each(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor | None]:
        """Queries and keys [batch, tokens, heads, head_dim] with norm and rotation, and keys that become values."""
        query = self._positioned(self._heads(self.q_proj(x), "q_norm"), "q_norm", context)
        if self.v_proj is not None:
            return query, self._positioned(self._heads(self.k_proj(x), "k_norm"), "k_norm", context), None
        projected = self.k_proj(x)
        return query, self._positioned(self._heads(projected, "k_norm"), "k_norm", context), projected

    def _heads(self, projected: Tensor, norm: str) -> Tensor:
        """Queries or keys as heads, after the norm where it is over all of them."""
        if isinstance(self.spec.qk_norm, RMSQKNorm) and self.spec.qk_norm.over == "width":
            projected = getattr(self, norm)(projected)
        return group_last(projected, -1, self.spec.head_dim)

    def _valued(self, value: Tensor | None) -> Tensor:
        """Values [batch, tokens, width] with their norm and factor applied."""
        assert value is not None
        if self.spec.value_norm is not None:
            value = rms_norm(group_last(value, -1, self.spec.value_dim), None, self.spec.value_norm.eps).flatten(-2)
        return value if self.spec.value_scale is None else value * self.spec.value_scale

    def _are_few(self, x: Tensor) -> bool:
        """True if starting operations takes longer than the copy that joins two into one; False with gradients."""
        turns_alike = not isinstance(self.spec.qk_norm, RMSQKNorm) and (self.rotation or self.spec.qk_norm)
        if x.shape[0] * x.shape[1] > MOST_FEW_ROWS or not turns_alike or self.v_proj is None:
            return False
        return not torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def _few(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, None]:
        """The same, turned and normed as heads of one tensor."""
        joined = torch.cat((self.q_proj(x), self.k_proj(x)), dim=-1)
        heads = self._positioned(group_last(joined, -1, self.spec.head_dim), "", context)
        query, key = torch.split(heads, [self.spec.num_heads, self.spec.num_kv_heads], dim=2)
        return query, key, None

    def _positioned(self, heads: Tensor, norm: str, context: Context) -> Tensor:
        qk_norm = self.spec.qk_norm
        if isinstance(qk_norm, RMSQKNorm) and qk_norm.over == "head":
            heads = getattr(self, norm)(heads)
        if self.rotation is not None:
            heads = self.rotation(heads, context)
        return rms_norm(heads, None, qk_norm.eps) if isinstance(qk_norm, L2Norm) else heads

    def _heads_first(self, rows: Rows) -> tuple[Tensor, Tensor]:
        dims = (self.spec.head_dim, self.spec.value_dim)
        key, value = (group_last(row, -1, dim).transpose(1, 2) for row, dim in zip(rows, dims, strict=True))
        return key, value

    def _sink_logits(self) -> Tensor:
        assert self.sinks is not None
        return self.sinks


def _rotation(spec: GQASpec) -> Rotation | None:
    if isinstance(spec.position, NoPosition):
        return None
    partial = spec.position.rotary_dim if isinstance(spec.position, Rope) else None
    return Rotation.of(spec.position, partial or spec.head_dim, spec.head_dim)


def _temperature(temperature: Temperature, context: Context) -> Tensor:
    """log(floor((position + 1) / floor_scale) + 1) * attn_scale + 1, fp32, [tokens, 1, 1] or [batch, tokens, 1, 1]."""

    def make() -> Tensor:
        steps = torch.floor((context.layout.positions.float() + 1.0) / temperature.floor_scale)
        return (torch.log1p(steps) * temperature.attn_scale + 1.0)[..., None, None]

    return context.once(f"temperature {temperature.floor_scale} {temperature.attn_scale}", make)
