"""The torch module of Mamba-2."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from l4spec.layers.base import Width
from l4spec.layers.common.cache import LayerCache, StateCache
from l4spec.layers.common.modules import Linear, TokenLayout, empty, group_last, rms_norm, wide
from l4spec.layers.mamba2.spec import Mamba2Spec
from l4spec.layers.recurrent.convolution import short_convolution
from l4spec.layers.recurrent.rows import RecurrentLayer, fresh_or_kept, last_columns
from l4spec.layers.recurrent.scan import selective_scan

_CONVOLVED = ("x_conv", "b_conv", "c_conv")


class GatedGroupNorm(nn.Module):
    """RMSNorm of each group of heads after the gate: norm(x * silu(gate)) * weight, in fp32."""

    def __init__(self, width: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = empty(width)
        self.num_groups, self.eps = num_groups, eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """`x` [..., width] in fp32 to the dtype of `gate` [..., width]."""
        gated = group_last(x * silu(wide(gate)), self.num_groups, -1)
        normed = rms_norm(gated, None, self.eps).flatten(-2).to(gate.dtype)
        return normed * self.weight


class Mamba2(RecurrentLayer):
    """Heads, B and C by a short convolution; the scan and a skip; a gate and a norm of each group; a projection."""

    def __init__(self, spec: Mamba2Spec, width: Width) -> None:
        super().__init__()
        self.spec = spec
        hidden, inner, shared = width.hidden_size, spec.inner_size, spec.num_groups * spec.state_size
        self.z_proj = Linear(hidden, inner, bias=spec.bias)
        self.x_proj = Linear(hidden, inner, bias=spec.bias)
        self.b_proj = Linear(hidden, shared, bias=spec.bias)
        self.c_proj = Linear(hidden, shared, bias=spec.bias)
        self.dt_proj = Linear(hidden, spec.num_heads, bias=spec.bias)
        for name, size in zip(_CONVOLVED, (inner, shared, shared), strict=True):
            self.register_parameter(name, empty(size, spec.conv_kernel_size))
            self.register_parameter(f"{name}_bias", empty(size) if spec.conv_bias else None)
        self.A_log = empty(spec.num_heads)
        self.D = empty(spec.num_heads)
        self.dt_bias = empty(spec.num_heads)
        self.norm = GatedGroupNorm(inner, spec.num_groups, spec.norm_eps)
        self.out_proj = Linear(inner, hidden, bias=spec.bias)

    def scan(self, x: Tensor, layout: TokenLayout, cache: LayerCache | None) -> Tensor:
        """[rows, tokens, hidden] to the same."""
        spec = self.spec
        mixed = torch.cat((self.x_proj(x), self.b_proj(x), self.c_proj(x)), dim=-1)
        before, state = fresh_or_kept(
            cache,
            layout,
            ((spec.conv_kernel_size - 1, spec.conv_width), mixed),
            ((spec.num_heads, spec.state_size, spec.head_dim), wide(mixed[:0])),
        )
        columns = None if cache is None else last_columns(mixed, before, layout)
        mixed = self._convolved(mixed, before)
        value, key, query = self._by_head(mixed)
        step = self._steps(x, layout.valid())
        decay = -wide(self.A_log).exp()[:, None] * step
        read, state = selective_scan(query, key, value * step[..., None], decay, state)
        if isinstance(cache, StateCache) and columns is not None:
            cache.keep((columns, state))
        read = (read + value * wide(self.D)[:, None, None]).transpose(1, 2).flatten(-2)
        result: Tensor = self.out_proj(self.norm(read, self.z_proj(x)))
        return result

    def _convolved(self, mixed: Tensor, before: Tensor) -> Tensor:
        weight = torch.cat([getattr(self, name) for name in _CONVOLVED])
        bias = torch.cat([getattr(self, f"{name}_bias") for name in _CONVOLVED]) if self.spec.conv_bias else None
        return short_convolution(mixed, before, weight, bias)

    def _by_head(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, keys (B) and queries (C) [rows, heads, tokens, width] in fp32; a group shares keys and queries."""
        spec = self.spec
        shared = spec.num_groups * spec.state_size
        parts = torch.split(mixed, [spec.inner_size, shared, shared], dim=-1)
        heads = (spec.num_heads, spec.num_groups, spec.num_groups)
        value, key, query = (
            wide(group_last(part, count, -1).transpose(1, 2)) for part, count in zip(parts, heads, strict=True)
        )
        each = spec.num_heads // spec.num_groups
        if each > 1:
            key, query = key.repeat_interleave(each, dim=1), query.repeat_interleave(each, dim=1)
        return value, key, query

    def _steps(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Step size of each token [rows, heads, tokens]; 0 where there is none."""
        step = softplus(wide(self.dt_proj(x)) + wide(self.dt_bias))
        if self.spec.min_step:
            step = step.clamp(min=self.spec.min_step)
        if valid is not None:
            step = step * valid[..., None]
        return step.transpose(1, 2)
