"""From a caller's batch (left or right padding, packed sequences, a cache) to aligned rows, and back."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from l4spec.layers.common.modules import TokenLayout
from l4spec.runtime.cache import Cache


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Aligned token ids [rows, tokens] with their layout; `order` [rows, tokens] is the original column of each."""

    input_ids: Tensor
    layout: TokenLayout
    order: Tensor | None = None
    image_grid: tuple[int, int] | None = None
    """Rows and columns of an image's tokens, where images have other sides than a tile."""


def align(
    input_ids: Tensor, attention_mask: Tensor | None, sequence_ids: Tensor | None, cache: Cache | None
) -> TokenBatch:
    """Move each row's real tokens to its front, and return their layout.

    Raises ValueError for shapes that differ, a cache of another batch or without room, and packed sequences that are
    padded or cached.
    """
    if input_ids.dim() != 2 or not input_ids.shape[1]:
        raise ValueError(f"input_ids must be [batch, tokens] with at least one token, found {tuple(input_ids.shape)}")
    for name, given in (("attention_mask", attention_mask), ("sequence_ids", sequence_ids)):
        if given is not None and given.shape != input_ids.shape:
            raise ValueError(f"{name} {tuple(given.shape)} must be shaped as input_ids {tuple(input_ids.shape)}")
    if cache is not None:
        _check_room(input_ids, cache)
    if sequence_ids is not None:
        if attention_mask is not None or cache is not None:
            raise ValueError("packed sequences take neither an attention_mask nor a cache")
        return TokenBatch(input_ids, _packed(sequence_ids))
    order, num_new = _order(attention_mask)
    if order is not None:
        input_ids = input_ids.gather(1, order)
    return TokenBatch(input_ids, _plain(input_ids, num_new, cache), order)


def _check_room(input_ids: Tensor, cache: Cache) -> None:
    batch, num_tokens = input_ids.shape
    if batch != cache.batch:
        raise ValueError(f"the cache is for {cache.batch} sequences, found {batch}")
    if cache.length + num_tokens > cache.max_len:
        raise ValueError(f"the cache has room for {cache.max_len} tokens, found {cache.length} + {num_tokens}")


def _order(attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Columns with real tokens first, and how many; (None, None) when every token is real."""
    if attention_mask is None:
        return None, None
    valid = attention_mask.bool()
    if not torch.compiler.is_compiling() and bool(valid.all()):
        return None, None
    return (~valid).int().argsort(dim=1, stable=True), valid.sum(dim=1)


def _plain(input_ids: Tensor, num_new: Tensor | None, cache: Cache | None) -> TokenLayout:
    rows, num_tokens = input_ids.shape
    start = 0 if cache is None else cache.length
    lengths = None if cache is None else cache.lengths
    if lengths is None and num_new is not None and start:
        lengths = torch.full_like(num_new, start)
    columns = torch.arange(num_tokens, device=input_ids.device)
    positions = columns + start if lengths is None else columns + lengths[:, None]
    return TokenLayout(rows, num_tokens, start, positions, lengths, num_new)


def _packed(sequence_ids: Tensor) -> TokenLayout:
    """Every run of equal ids is a sequence of its own, numbered from 0, with positions from 0."""
    rows, num_tokens = sequence_ids.shape
    columns = torch.arange(num_tokens, device=sequence_ids.device)
    begins = torch.ones_like(sequence_ids, dtype=torch.bool)
    begins[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    first = torch.where(begins, columns, 0).cummax(dim=1).values
    return TokenLayout(rows, num_tokens, 0, columns - first, sequence_ids=begins.cumsum(dim=1))


def last_tokens(hidden: Tensor, batch: TokenBatch) -> Tensor:
    """[rows, tokens, hidden] to each row's last real token [rows, 1, hidden]."""
    num_new = batch.layout.num_new
    if num_new is None:
        return hidden[:, -1:]
    index = (num_new - 1).clamp(min=0)[:, None, None].expand(-1, 1, hidden.shape[-1])
    return hidden.gather(1, index)


def restore(result: Tensor, batch: TokenBatch) -> Tensor:
    """Columns back where the caller had them."""
    if batch.order is None:
        return result
    columns = torch.arange(batch.order.shape[1], device=result.device).expand_as(batch.order)
    where = torch.empty_like(batch.order).scatter(1, batch.order, columns)
    return result.gather(1, where[..., None].expand_as(result))


def with_images(layout: TokenLayout, mask: Tensor | None, grid: tuple[int, int], before: Tensor | None) -> TokenLayout:
    """The layout with `places` [rows, tokens, 3]: time, row and column of each token (M-RoPE, arXiv:2409.12191).

    `mask` [rows, tokens] marks an image's tokens, of `grid` rows and columns; `before` [rows] counts those in the
    cache. An image starts at the next number, counts rows and columns from there, and the text continues after the
    larger of its sides. Raises ValueError for a sequence that is divided among ranks.
    """
    if layout.runs:
        raise ValueError("images have places of their own, which ranks that divide a sequence do not know: use cp=1")
    positions = layout.positions.expand(layout.num_rows, layout.num_tokens)
    own = torch.zeros_like(positions) if mask is None else mask.long()
    earlier = own.cumsum(1) - own + (0 if before is None else before[:, None])
    if layout.sequence_ids is not None:  # packed: each sequence counts its own
        earlier = earlier - torch.where(positions == 0, earlier, 0).cummax(1).values
    rows, columns = grid
    inside = earlier % (rows * columns) * own
    start = positions - earlier + earlier // (rows * columns) * max(grid)
    places = torch.stack((start, start + inside // columns, start + inside % columns), dim=-1)
    return replace(layout, places=places)


def image_layout(
    num_tiles: int, grid: tuple[int, int], class_token: Literal["first", "last", "none"], device: torch.device
) -> TokenLayout:
    """The patches of a tile, row by row, at places (x + 1, y + 1) [patches (+ 1), 2]; a class token at (0, 0)."""
    rows, columns = grid
    side = torch.arange(columns, device=device) + 1
    down = side if rows == columns else torch.arange(rows, device=device) + 1
    patches = torch.stack((side.repeat(rows), down.repeat_interleave(columns)), dim=-1)
    origin = patches.new_zeros(1, 2)
    if class_token != "none":
        patches = torch.cat((patches, origin) if class_token == "last" else (origin, patches))
    num_tokens = patches.shape[0]
    return TokenLayout(num_tiles, num_tokens, 0, torch.arange(num_tokens, device=device), places=patches, grid=grid)
