"""Keys that queries may attend to: window rows and compressed entries of cache and pass, with their masks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from l4spec.layers.attention.compute import allowed_keys, own_positions
from l4spec.layers.attention.masks import SlidingWindowMask
from l4spec.layers.common.cache import LayerCache
from l4spec.layers.common.modules import TokenLayout
from l4spec.layers.compressed_attention.pairs import Band
from l4spec.layers.compressed_attention.windows import FinishedWindows


@dataclass(frozen=True, slots=True)
class SeenRows:
    """Rows [batch, rows, width], and which of them each query sees [batch, queries, rows]; None: by their places."""

    rows: Tensor
    seen: Tensor | None = None


def window_rows(key: Tensor, layout: TokenLayout, window: int, cache: LayerCache | None) -> SeenRows:
    """Keys [batch, tokens, width] of a pass after those of the window before it, which the cache then forgets."""
    mask = SlidingWindowMask(kind="sliding_window", size=window)
    if layout.is_uniform:
        num_old = 0 if cache is None else min(layout.start, window - 1)
        seen, rows = None, key
        if cache is not None and num_old:
            rows = torch.cat((old_rows(cache, layout, num_old), key), dim=1)
    elif cache is None:
        seen, rows = allowed_keys(mask, layout, own_positions(layout))[:, 0], key
    else:
        assert layout.lengths is not None, "packed sequences are not cached"
        stop = min(cache.num_slots, layout.start)
        rows = torch.cat((cache.data[:, :stop], key), dim=1)
        places = torch.cat((cache.slot_positions(layout.lengths)[:, :stop], own_positions(layout)), dim=1)
        seen = allowed_keys(mask, layout, places)[:, 0]
    if cache is not None:
        write_rows(cache, key, layout)
    return SeenRows(rows, seen)


def old_rows(cache: LayerCache, layout: TokenLayout, count: int) -> Tensor:
    """The `count` rows before each row's new tokens, oldest first [batch, count, width]; undefined before the start."""
    width = cache.data.shape[-1]
    if layout.lengths is None:
        return cache.read_ring((width,), layout.start, count)[0]
    places = layout.lengths[:, None] - count + torch.arange(count, device=layout.lengths.device)
    slots = (places % cache.num_slots)[..., None].expand(-1, -1, width)
    return cache.data.gather(1, slots)


def write_rows(cache: LayerCache, rows: Tensor, layout: TokenLayout) -> None:
    """Keep the rows [batch, tokens, width] of a pass in a ring."""
    if layout.is_uniform and layout.num_new is None:
        cache.write_ring((rows,), layout.start)
    else:
        cache.write_ragged((rows,), *_counts(layout))


def _counts(layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Tokens of each row before a pass, and new ones, where rows differ."""
    lengths, num_new = layout.lengths, layout.num_new
    if lengths is None:
        assert num_new is not None, "rows that are alike"
        return torch.zeros_like(num_new), num_new
    return lengths, torch.full_like(lengths, layout.num_tokens) if num_new is None else num_new


def all_entries(
    new: Tensor, windows: FinishedWindows, layout: TokenLayout, ratio: int, kept: LayerCache | None
) -> SeenRows:
    """Entries of earlier windows and of those that a pass finishes, which the cache keeps."""
    if kept is None:
        return SeenRows(new, None if windows.real is None else _seen_when_packed(windows, layout))
    if not kept.num_slots:
        return SeenRows(new[:, :0], None if layout.is_uniform else new.new_zeros(layout.num_rows, layout.num_tokens, 0))
    if windows.count and layout.is_uniform and layout.num_new is None:
        kept.write((new,), layout.start // ratio)
    elif windows.count:
        before, count = _counts(layout)
        kept.write_ragged((new,), before // ratio, (before + count) // ratio - before // ratio)
    rows = kept.data[:, : min((layout.start + layout.num_tokens) // ratio, kept.num_slots)]
    if layout.is_uniform:
        return SeenRows(rows)
    finished = (layout.positions.expand(layout.num_rows, -1) + 1) // ratio
    return SeenRows(rows, torch.arange(rows.shape[1], device=rows.device) < finished[..., None])


def _seen_when_packed(windows: FinishedWindows, layout: TokenLayout) -> Tensor:
    """A query sees finished windows of its own sequence."""
    assert windows.real is not None and layout.sequence_ids is not None, "rows differ by what is packed into them"
    ids, columns = layout.sequence_ids, torch.arange(layout.num_tokens, device=windows.columns.device)
    is_before = windows.columns[:, None] <= columns[:, None]
    is_own = ids.gather(1, windows.columns)[:, None] == ids[..., None]
    return is_before & is_own & windows.real[:, None]


def window_seen(near: SeenRows, band: Band, layout: TokenLayout, window: int) -> Tensor:
    """Mask of the window's rows that the queries of a band attend to, [.., queries, rows]."""
    if near.seen is not None:
        return near.seen
    device = near.rows.device
    query = torch.arange(band.first, band.last, device=device)[:, None] + near.rows.shape[1] - layout.num_tokens
    row = torch.arange(band.low, band.high, device=device)
    return (row <= query) & (row > query - window)


def entries_seen(far: SeenRows, band: Band, layout: TokenLayout, ratio: int) -> Tensor:
    """Mask of the first entries that the queries of a band attend to, [.., queries, entries]."""
    if far.seen is not None:
        return far.seen
    device = far.rows.device
    query = torch.arange(band.first, band.last, device=device)[:, None] + layout.start
    return torch.arange(band.entries, device=device) < (query + 1) // ratio
