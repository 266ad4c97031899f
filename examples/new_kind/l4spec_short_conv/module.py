"""The torch module of the gated short convolution; imported only when a model is built."""

import torch
from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.cache import LayerCache
from l4spec.layers.common.modules import Context, LayerModule, Linear, TokenLayout, empty
from l4spec_short_conv.spec import ShortConvSpec


class ShortConv(LayerModule):
    """out_proj(c * conv(b * x)): b, c and x are projections of the input, conv runs over the latest tokens."""

    def __init__(self, spec: ShortConvSpec, width: Width) -> None:
        super().__init__()
        hidden = width.hidden_size
        self.b_proj = Linear(hidden, hidden, bias=False)
        self.c_proj = Linear(hidden, hidden, bias=False)
        self.x_proj = Linear(hidden, hidden, bias=False)
        self.conv = empty(hidden, spec.kernel_size)
        self.out_proj = Linear(hidden, hidden, bias=False)
        self.num_before = spec.kernel_size - 1

    def forward(self, u: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to [batch, tokens, hidden]."""
        gated = self.b_proj(u) * self.x_proj(u)
        convolved = self._convolve(gated, context)
        result: Tensor = self.out_proj(self.c_proj(u) * convolved)
        return result

    def _convolve(self, gated: Tensor, context: Context) -> Tensor:
        """Each channel's weighted sum of its token and the `num_before` tokens before it."""
        cache, layout = context.cache_of(self.node_id), context.layout
        if cache is None:
            before = gated.new_zeros(gated.shape[0], self.num_before, gated.shape[2])
        else:
            before = self._before(cache, layout)
            _remember(gated, cache, layout)
        padded = torch.cat((before, gated), dim=1)
        num_tokens = gated.shape[1]
        result = padded[:, self.num_before :] * self.conv[:, self.num_before]
        for lag in range(1, self.num_before + 1):
            first = self.num_before - lag
            earlier = padded[:, first : first + num_tokens]
            if layout.sequence_ids is not None:  # packed: a sequence does not see the one before it
                earlier = earlier * (layout.positions >= lag)[..., None]
            result = torch.addcmul(result, earlier, self.conv[:, first])
        return result

    def _before(self, cache: LayerCache, layout: TokenLayout) -> Tensor:
        """Cached rows of the `num_before` tokens before each row's first new one, zero before the sequence's start.

        [batch, num_before, hidden], oldest first. The token at position p is in slot p % num_slots.
        """
        positions = layout.positions[..., :1] + torch.arange(-self.num_before, 0, device=layout.positions.device)
        positions = positions.expand(layout.num_rows, -1)[..., None]
        (kept,) = cache.read((self.conv.shape[0],), 0, cache.num_slots)
        rows = kept.gather(1, (positions % cache.num_slots).expand(-1, -1, kept.shape[2]))
        return torch.where(positions >= 0, rows, 0)


def _remember(gated: Tensor, cache: LayerCache, layout: TokenLayout) -> None:
    """Write new tokens into the cache: round the ring where rows are alike, else each row's own number of them."""
    if layout.lengths is None and layout.num_new is None:
        cache.write_ring((gated,), layout.start)
        return
    counted = layout.lengths if layout.num_new is None else layout.num_new
    assert counted is not None
    lengths = torch.zeros_like(counted) if layout.lengths is None else layout.lengths
    num_new = torch.full_like(counted, layout.num_tokens) if layout.num_new is None else layout.num_new
    cache.write_ragged((gated,), lengths, num_new)
