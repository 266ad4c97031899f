"""The cache of one layer: one preallocated tensor that holds no more tokens than the layer's law allows.

The token at position p is in slot p % num_slots. A full cache has a slot for every token of the longest sequence, a
chunk-bounded one the slots of a single chunk (aligned chunks: a new chunk starts again at slot 0), a window-bounded
one is a ring.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from l4spec.layers.declaration import Bound, CacheEntry, Declaration

Rows = tuple[Tensor, ...]
"""Cached tensors of a layer, [batch, tokens, width] each: keys and values, or a latent."""
Attend = Callable[[Tensor, Rows, Any, "LayerCache | None"], Tensor]
"""Attention function: (query, new rows, context of the pass, cache) to one vector per query."""


class StateRows(Protocol):
    """Positions of the rows of a pass: the number of earlier tokens, of all rows or of each."""

    @property
    def start(self) -> int:
        """Earlier tokens, an upper bound where rows differ."""

    @property
    def lengths(self) -> Tensor | None:
        """Earlier tokens of each row, where rows differ."""


def split_last(x: Tensor, widths: tuple[int, ...]) -> Rows:
    """Views of the last dimension, cut into these widths."""
    parts: Rows = torch.split(x, list(widths), dim=-1)
    return parts


@dataclass(frozen=True, slots=True)
class LayerCache:
    """`data` is [batch, num_slots, elements per token], filled by the layer in the order of its declared entries."""

    data: Tensor
    defers: ClassVar[bool] = False
    """True if `defer` records attention instead of computing it, as while a step is traced."""

    def defer(self, attend: Attend, query: Tensor, new: Rows, width: int) -> Tensor:
        """Record how the layer attends; see `layers.attention.traced`. A cache that holds rows does not defer."""
        raise NotImplementedError("a cache that holds rows does not defer")

    @property
    def num_bytes(self) -> int:
        """Bytes allocated."""
        return self.data.numel() * self.data.element_size()

    @property
    def num_slots(self) -> int:
        """Tokens per sequence that fit."""
        return self.data.shape[1]

    def read(self, widths: tuple[int, ...], start: int, stop: int) -> Rows:
        """Views of the slots from `start` to `stop`, cut into tensors of these widths."""
        return split_last(self.data[:, start:stop], widths)

    def write(self, rows: Rows, slot: int) -> None:
        """Copy rows into consecutive slots from `slot` on; they must not run over the end."""
        here, first = self.data.narrow(1, slot, rows[0].shape[1]), 0
        for tensor in rows:
            width = tensor.shape[-1]
            (here if len(rows) == 1 else here.narrow(2, first, width)).copy_(tensor)
            first += width

    def write_ring(self, rows: Rows, start: int) -> None:
        """Write rows of the positions from `start` on, round the ring; only the last `num_slots` of them stay."""
        size, count = self.num_slots, rows[0].shape[1]
        kept = min(size, count)
        rows = tuple(tensor[:, count - kept :] for tensor in rows)
        slot = (start + count - kept) % size
        before_end = min(kept, size - slot)
        self.write(tuple(tensor[:, :before_end] for tensor in rows), slot)
        if before_end < kept:
            self.write(tuple(tensor[:, before_end:] for tensor in rows), 0)

    def read_ring(self, widths: tuple[int, ...], start: int, count: int) -> Rows:
        """The `count` tokens before position `start`, oldest first; a copy only where they wrap round the end."""
        slot = (start - count) % self.num_slots
        if slot + count <= self.num_slots:
            return self.read(widths, slot, slot + count)
        joined = torch.cat((self.data[:, slot:], self.data[:, : slot + count - self.num_slots]), dim=1)
        return split_last(joined, widths)

    def slot_positions(self, lengths: Tensor) -> Tensor:
        """[batch, num_slots]: the latest position below `lengths` [batch] that each slot holds; negative: none yet."""
        slots = torch.arange(self.num_slots, device=lengths.device)
        laps = torch.div(lengths[:, None] - 1 - slots, self.num_slots, rounding_mode="floor")
        return slots + self.num_slots * laps

    def write_ragged(self, rows: Rows, lengths: Tensor, num_new: Tensor) -> None:
        """Add `num_new` [batch] tokens of each row after its `lengths` [batch] earlier ones; other columns are ignored.

        Every slot takes the latest new token that belongs to it.
        """
        source = self.slot_positions(lengths + num_new) - lengths[:, None]
        index = source.clamp(min=0)[..., None].expand(-1, -1, self.data.shape[-1])
        new = torch.cat(rows, dim=-1).gather(1, index)
        self.data.copy_(torch.where(source[..., None] >= 0, new, self.data))

    def write_one_each(self, rows: Rows, positions: Tensor) -> None:
        """Write one token per row at its position [batch]."""
        batch = torch.arange(self.data.shape[0], device=positions.device)
        self.data[batch, positions % self.num_slots] = torch.cat(rows, dim=-1)[:, 0]


@dataclass(frozen=True, slots=True)
class StateCache(LayerCache):
    """State of a recurrent layer, of constant size per sequence: one tensor [batch, *dims] per declared entry.

    A layer ignores the state in rows where a sequence begins, so that the state of an earlier sequence does no harm.
    """

    states: tuple[Tensor, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all states."""
        return sum(state.numel() * state.element_size() for state in self.states)

    def before(self, layout: "StateRows") -> tuple[Tensor, ...] | None:
        """The states before a pass's first token, zero for rows that begin; None if every sequence begins."""
        if layout.start == 0:
            return None
        if layout.lengths is None:
            return self.states
        begun = layout.lengths > 0
        return tuple(
            torch.where(begun.view(-1, *[1] * (state.dim() - 1)), state, torch.zeros_like(state))
            for state in self.states
        )

    def keep(self, states: tuple[Tensor, ...]) -> None:
        """Replace the states by those after a pass's last token."""
        for old, new in zip(self.states, states, strict=True):
            old.copy_(new)


@dataclass(frozen=True, slots=True)
class CacheOfLaws(LayerCache):
    """Cache of a layer whose entries grow by several laws: one cache per declared entry, in their order."""

    parts: tuple[LayerCache, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.num_bytes for part in self.parts)


def allocate(
    declaration: Declaration, batch: int, max_len: int, dtype: torch.dtype, device: torch.device
) -> LayerCache | None:
    """Zeroed memory for one layer: batch * num_kept(max_len) * elements per row; None for a layer that keeps nothing.

    Neighbours that grow by one law share a tensor, others have one of their own.
    """
    by_law = groupby(declaration.cache, key=lambda entry: entry.bound)
    parts = tuple(_of_law(bound, list(entries), batch, max_len, dtype, device) for bound, entries in by_law)
    if len(parts) < 2:
        return parts[0] if parts else None
    return CacheOfLaws(torch.zeros(batch, 0, 0, dtype=dtype, device=device), parts)


def _of_law(
    bound: Bound, entries: list[CacheEntry], batch: int, max_len: int, dtype: torch.dtype, device: torch.device
) -> LayerCache:
    if bound.is_state:
        states = (
            torch.zeros(batch, *(dim.size for dim in entry.dims), dtype=entry_dtype(entry, dtype), device=device)
            for entry in entries
        )
        return StateCache(torch.zeros(batch, 0, 0, dtype=dtype, device=device), tuple(states))
    width = sum(entry.elements_per_token for entry in entries)
    return LayerCache(torch.zeros(batch, bound.num_kept(max_len), width, dtype=dtype, device=device))


def entry_dtype(entry: CacheEntry, dtype: torch.dtype) -> torch.dtype:
    """The number format of a cached entry in a model of `dtype`: fp32 where its kind demands more than that has."""
    return dtype if entry.bytes_per_element(dtype.itemsize) == dtype.itemsize else torch.float32
