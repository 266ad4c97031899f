"""The torch module of the gated delta net."""

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from l4spec.layers.base import Width
from l4spec.layers.common.cache import LayerCache, StateCache
from l4spec.layers.common.modules import Linear, Norm, TokenLayout, empty, group_last, wide
from l4spec.layers.gated_delta_net.spec import GatedDeltaNetSpec
from l4spec.layers.recurrent.convolution import short_convolution
from l4spec.layers.recurrent.delta_rule import delta_rule, unit_length
from l4spec.layers.recurrent.rows import RecurrentLayer, fresh_or_kept, last_columns


class GatedDeltaNet(RecurrentLayer):
    """Queries, keys and values by a short convolution; the delta rule; a norm of each head, a gate, a projection."""

    def __init__(self, spec: GatedDeltaNetSpec, width: Width) -> None:
        super().__init__()
        self.spec = spec
        hidden, keys = width.hidden_size, spec.num_key_heads * spec.key_head_dim
        values, kernel = spec.num_value_heads * spec.value_head_dim, spec.conv_kernel_size
        self.q_proj = Linear(hidden, keys, bias=False)
        self.k_proj = Linear(hidden, keys, bias=False)
        self.v_proj = Linear(hidden, values, bias=False)
        self.z_proj = Linear(hidden, values, bias=False)
        self.b_proj = Linear(hidden, spec.num_value_heads, bias=False)
        self.a_proj = Linear(hidden, spec.num_value_heads, bias=False)
        self.q_conv, self.k_conv, self.v_conv = empty(keys, kernel), empty(keys, kernel), empty(values, kernel)
        self.A_log = empty(spec.num_value_heads)
        self.dt_bias = empty(spec.num_value_heads)
        self.norm = Norm(spec.value_head_dim, spec.norm_eps)
        self.out_proj = Linear(values, hidden, bias=False)

    def scan(self, x: Tensor, layout: TokenLayout, cache: LayerCache | None) -> Tensor:
        """[rows, tokens, hidden] to the same."""
        spec, valid = self.spec, layout.valid()
        mixed = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)
        before, state = fresh_or_kept(
            cache,
            layout,
            ((spec.conv_kernel_size - 1, spec.conv_width), mixed),
            ((spec.num_value_heads, spec.key_head_dim, spec.value_head_dim), wide(mixed[:0])),
        )
        columns = None if cache is None else last_columns(mixed, before, layout)
        mixed = short_convolution(mixed, before, torch.cat((self.q_conv, self.k_conv, self.v_conv)))
        read, state = delta_rule(*self._by_head(mixed), *self._gates(x, valid), state)
        if isinstance(cache, StateCache) and columns is not None:
            cache.keep((columns, state))
        read = self.norm(read.transpose(1, 2).to(x.dtype))
        gate = silu(wide(group_last(self.z_proj(x), spec.num_value_heads, -1)))
        result: Tensor = self.out_proj((read * gate).to(x.dtype).flatten(-2))
        return result

    def _by_head(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [rows, heads, tokens, width] in fp32; queries and keys of length 1, one a value."""
        spec = self.spec
        keys, values = spec.num_key_heads * spec.key_head_dim, spec.num_value_heads * spec.value_head_dim
        parts = torch.split(mixed, [keys, keys, values], dim=-1)
        heads = (spec.num_key_heads, spec.num_key_heads, spec.num_value_heads)
        query, key, value = (
            wide(group_last(part, count, -1).transpose(1, 2)) for part, count in zip(parts, heads, strict=True)
        )
        shared = spec.num_value_heads // spec.num_key_heads
        query, key = unit_length(query) * spec.key_head_dim**-0.5, unit_length(key)
        if shared > 1:
            query, key = query.repeat_interleave(shared, dim=1), key.repeat_interleave(shared, dim=1)
        return query, key, value

    def _gates(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log decay of the state and the strength of its correction, both [rows, heads, tokens]; 0 at padding."""
        beta = wide(self.b_proj(x)).sigmoid()
        decay = -wide(self.A_log).exp() * softplus(wide(self.a_proj(x)) + wide(self.dt_bias))
        if valid is not None:
            beta, decay = beta * valid[..., None], decay * valid[..., None]
        return decay.transpose(1, 2), beta.transpose(1, 2)
