"""The torch module of Kimi Delta Attention."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from l4spec.layers.base import Width
from l4spec.layers.common.cache import LayerCache, StateCache
from l4spec.layers.common.modules import Linear, Norm, TokenLayout, empty, group_last, wide
from l4spec.layers.kda.spec import KDASpec
from l4spec.layers.recurrent.channel_delta_rule import channel_delta_rule
from l4spec.layers.recurrent.convolution import short_convolution
from l4spec.layers.recurrent.delta_rule import unit_length
from l4spec.layers.recurrent.rows import RecurrentLayer, fresh_or_kept, last_columns


class KDA(RecurrentLayer):
    """Queries, keys and values by short convolutions; the delta rule; a norm of each head, a gate, a projection."""

    def __init__(self, spec: KDASpec, width: Width) -> None:
        super().__init__()
        self.spec = spec
        hidden, channels, kernel = width.hidden_size, spec.heads_width, spec.conv_kernel_size
        self.q_proj = Linear(hidden, channels, bias=False)
        self.k_proj = Linear(hidden, channels, bias=False)
        self.v_proj = Linear(hidden, channels, bias=False)
        self.b_proj = Linear(hidden, spec.num_heads, bias=False)
        self.f_a_proj = Linear(hidden, spec.head_dim, bias=False)
        self.f_b_proj = Linear(spec.head_dim, channels, bias=False)
        self.g_a_proj = Linear(hidden, spec.head_dim, bias=False)
        self.g_b_proj = Linear(spec.head_dim, channels, bias=False)
        self.q_conv, self.k_conv, self.v_conv = (empty(channels, kernel) for _ in range(3))
        self.A_log = empty(spec.num_heads)
        self.dt_bias = empty(channels)
        self.o_norm = Norm(spec.head_dim, spec.norm_eps)
        self.o_proj = Linear(channels, hidden, bias=False)

    def scan(self, x: Tensor, layout: TokenLayout, cache: LayerCache | None) -> Tensor:
        """[rows, tokens, hidden] to the same."""
        spec, valid = self.spec, layout.valid()
        mixed = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)
        before, state = fresh_or_kept(
            cache,
            layout,
            ((spec.conv_kernel_size - 1, 3 * spec.heads_width), mixed),
            ((spec.num_heads, spec.head_dim, spec.head_dim), wide(mixed[:0])),
        )
        columns = None if cache is None else last_columns(mixed, before, layout)
        mixed = short_convolution(mixed, before, torch.cat((self.q_conv, self.k_conv, self.v_conv)))
        read, state = channel_delta_rule(*self._by_head(mixed), *self._gates(x, valid), state)
        if isinstance(cache, StateCache) and columns is not None:
            cache.keep((columns, state))
        read = self.o_norm(read.transpose(1, 2).to(x.dtype))
        gate = wide(group_last(self.g_b_proj(self.g_a_proj(x)), spec.num_heads, -1)).sigmoid()
        result: Tensor = self.o_proj((read * gate).to(x.dtype).flatten(-2))
        return result

    def _by_head(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [rows, heads, tokens, head_dim] in fp32; queries and keys of length 1."""
        spec = self.spec
        query, key, value = (
            wide(group_last(part, spec.num_heads, -1).transpose(1, 2)) for part in mixed.chunk(3, dim=-1)
        )
        return unit_length(query) * spec.head_dim**-0.5, unit_length(key), value

    def _gates(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log decay of each channel [rows, heads, tokens, head_dim], and the strength of the correction without it.

        Both are 0 where there is no token, so that it leaves the state alone.
        """
        beta = wide(self.b_proj(x)).sigmoid()
        steps = softplus(wide(self.f_b_proj(self.f_a_proj(x))) + wide(self.dt_bias))
        decay = -wide(self.A_log).exp()[:, None] * group_last(steps, self.spec.num_heads, -1)
        if valid is not None:
            beta, decay = beta * valid[..., None], decay * valid[..., None, None]
        return decay.transpose(1, 2), beta.transpose(1, 2)
