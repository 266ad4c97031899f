"""Entries that each summarize several tokens: the tokens of each entry, and their gated sum."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l4spec.layers.common.cache import split_last
from l4spec.layers.common.modules import Linear, Norm, TokenLayout, empty, rms_norm, wide
from l4spec.layers.compressed_attention.spec import Compression
from l4spec.units import ceil_div


@dataclass(frozen=True, slots=True)
class FinishedWindows:
    """The windows that the tokens of a pass finish.

    `columns` are their last tokens among those of the pass, `rows` their tokens among `num_old` kept rows and the new
    ones, `absent` which of these are before the first token of a sequence: [windows, ..] where all rows of the batch
    are alike, else [batch, windows, ..] with `real` [batch, windows] for those that are any. `starts` are positions.
    """

    columns: Tensor
    rows: Tensor
    absent: Tensor
    starts: Tensor
    num_old: int
    real: Tensor | None = None

    @property
    def count(self) -> int:
        """Windows of each row of the batch, unreal ones included."""
        return self.columns.shape[-1]


def finished(layout: TokenLayout, compression: Compression, *, cached: bool) -> FinishedWindows:
    """The windows that a pass finishes, with rows of `cached` tokens before it where there are any."""
    ratio, reach = compression.ratio, compression.reach
    device = layout.positions.device
    place = torch.arange(reach, device=device) - (reach - 1)
    if layout.is_uniform:
        num_old = min(layout.start, reach - 1)
        first = ratio - 1 - layout.start % ratio
        columns = torch.arange(first, max(first, layout.num_tokens), ratio, device=device)
        last, real = columns + layout.start, None
    else:
        num_old = reach - 1 if cached else 0
        positions, valid = layout.positions.expand(layout.num_rows, -1), layout.valid()
        closes = (positions + 1) % ratio == 0
        closes = closes if valid is None else closes & valid
        columns = (~closes).int().argsort(dim=1, stable=True)[:, : ceil_div(layout.num_tokens, ratio)]
        last, real = positions.gather(1, columns), closes.gather(1, columns)
    absent = last[..., None] + place < 0
    absent = absent if real is None else absent & real[..., None]
    rows = (columns[..., None] + place + num_old).clamp(min=0)
    return FinishedWindows(columns, rows, absent, last - (ratio - 1), num_old, real)


class WideNorm(Norm):
    """RMSNorm whose weight multiplies in fp32, before rounding, as the reference has it."""

    def forward(self, x: Tensor) -> Tensor:
        """The normed tensor, in the dtype of `x`."""
        return rms_norm(wide(x), wide(self.weight), self.eps).to(x.dtype)


class Compressor(nn.Module):
    """norm(sum of softmax(gate + bias) * key) over the tokens of a window, and of the one before where they overlap."""

    def __init__(self, hidden_size: int, key_width: int, compression: Compression, eps: float) -> None:
        super().__init__()
        self.compression, self.key_width = compression, key_width
        series = compression.num_series * key_width
        self.kv_proj = Linear(hidden_size, series, bias=False)
        self.gate_proj = Linear(hidden_size, series, bias=False)
        self.position_bias = empty(compression.ratio, series)
        self.kv_norm = WideNorm(key_width, eps)

    def gated(self, x: Tensor) -> Tensor:
        """Keys and gates of tokens [batch, tokens, hidden] as one row each, [batch, tokens, 2 * series * width]."""
        return torch.cat((self.kv_proj(x), self.gate_proj(x)), dim=-1)

    def entries(self, rows: Tensor, windows: FinishedWindows) -> Tensor:
        """Kept and new rows [batch, rows, 2 * series * width] to entries [batch, windows, width], before rotation."""
        taken = self._taken(rows, windows.rows)
        keys, gates = taken.chunk(2, dim=-1)
        keys, gates = self._of_series(keys), self._of_series(gates) + self._bias()
        gates = wide(gates).masked_fill(windows.absent[..., None], float("-inf"))
        weights = gates.softmax(dim=-2).to(keys.dtype)
        result: Tensor = self.kv_norm((keys * weights).sum(dim=-2))
        return result

    def _taken(self, rows: Tensor, index: Tensor) -> Tensor:
        """Rows of each window, [batch, windows, tokens, width]."""
        shape = (rows.shape[0], *index.shape[-2:], rows.shape[-1])
        if index.dim() == 2:
            return rows[:, index.flatten()].view(shape)
        return rows.gather(1, index.flatten(1)[..., None].expand(-1, -1, rows.shape[-1])).view(shape)

    def _of_series(self, x: Tensor) -> Tensor:
        """Of tokens of the window before the first series, of those of the own window the last."""
        if not self.compression.overlap:
            return x
        ratio, width = self.compression.ratio, self.key_width
        return torch.cat((x[..., :ratio, :width], x[..., ratio:, width:]), dim=-2)

    def _bias(self) -> Tensor:
        if not self.compression.overlap:
            return self.position_bias
        return torch.cat(split_last(self.position_bias, (self.key_width, self.key_width)))
