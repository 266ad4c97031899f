"""Sequences as rows: packed ones taken apart, columns that hold no token, and the last tokens of each row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from l4spec.layers.common.cache import LayerCache, StateCache
from l4spec.layers.common.modules import Context, LayerModule, TokenLayout


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Rows [sequences, tokens] that each hold one sequence, and where they came from.

    `places` are the rows and columns of packed tokens as flat indices [rows, tokens]; None if rows are sequences.
    """

    layout: TokenLayout
    places: Tensor | None = None

    @classmethod
    def of(cls, layout: TokenLayout) -> "SequenceRows":
        """Packed sequences get rows of their own, as long as the longest."""
        if layout.sequence_ids is None:
            return cls(layout)
        number = (layout.positions == 0).flatten().cumsum(0) - 1  # every sequence begins at position 0
        longest = int(layout.positions.max()) + 1
        num_sequences = int(number[-1]) + 1
        num_new = torch.zeros(num_sequences, dtype=torch.long, device=number.device)
        num_new = num_new.scatter_add(0, number, torch.ones_like(number))
        columns = torch.arange(longest, device=number.device)
        rows = TokenLayout(num_sequences, longest, 0, columns, num_new=num_new)
        return cls(rows, number.view_as(layout.positions) * longest + layout.positions)

    def apart(self, x: Tensor) -> Tensor:
        """[rows, tokens, width] to one row per sequence, zeros where there is no token."""
        if self.places is None:
            return x
        apart = x.new_zeros(self.layout.num_rows * self.layout.num_tokens, x.shape[-1])
        return apart.index_copy(0, self.places.flatten(), x.flatten(0, 1)).view(
            self.layout.num_rows, self.layout.num_tokens, -1
        )

    def together(self, x: Tensor) -> Tensor:
        """One row per sequence back to [rows, tokens, width]."""
        return x if self.places is None else x.flatten(0, 1)[self.places]


def last_columns(x: Tensor, before: Tensor, layout: TokenLayout) -> Tensor:
    """The last `before.shape[1]` real columns of each row, from `before` where a row has fewer new ones.

    `x` is [rows, tokens, width], `before` [rows, count, width]; returns as many columns as `before` has.
    """
    count, num_tokens = before.shape[1], x.shape[1]
    if layout.num_new is None:
        if num_tokens < count:
            return torch.cat((before[:, num_tokens:], x), dim=1)
        return x[:, num_tokens - count :].clone()  # a view would keep all tokens
    columns = layout.num_new[:, None] + torch.arange(count, device=x.device)
    return torch.cat((before, x), dim=1).gather(1, columns[..., None].expand(-1, -1, x.shape[-1]))


def fresh_or_kept(
    cache: LayerCache | None, layout: TokenLayout, *shapes: tuple[tuple[int, ...], Tensor]
) -> tuple[Tensor, ...]:
    """The states before a pass: those of the cache, else zeros [rows, *shape] like the tensor beside each shape."""
    assert cache is None or isinstance(cache, StateCache), "a recurrent layer keeps states"
    kept = None if cache is None else cache.before(layout)
    return kept or tuple(like.new_zeros(layout.num_rows, *shape) for shape, like in shapes)


class RecurrentLayer(LayerModule):
    """Base of layers that read a sequence token by token, and keep of it a state that does not grow."""

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to [batch, tokens, hidden]."""
        rows = SequenceRows.of(context.layout)
        return rows.together(self.scan(rows.apart(x), rows.layout, context.cache_of(self.node_id)))

    def scan(self, x: Tensor, layout: TokenLayout, cache: LayerCache | None) -> Tensor:
        """Rows that each hold one sequence, [rows, tokens, hidden] to the same; the cache continues after the last."""
        raise NotImplementedError(type(self).__name__)
