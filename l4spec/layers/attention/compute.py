"""Attention that computes only what its mask allows, with or without a cache, for every mask and layout.

Uniform rows go through plain slices: chunks are folded into the batch, windows become bands of blocks, a query after a
cached past sees slices of the cache. Rows with different pasts and packed sequences go through one explicit mask, made
once per forward pass for all layers that share it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from l4spec.layers.attention.masks import ChunkedMask, GridWindowMask, Mask, NoMask, SlidingWindowMask
from l4spec.layers.attention.walk import BLOCK
from l4spec.layers.common.cache import LayerCache, Rows
from l4spec.layers.common.modules import Context, TokenLayout, soft_cap, wide


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one layer.

    `expand` maps the cached rows of tokens to keys and values [batch, kv_heads, tokens, head_dim]; `widths` are the
    widths of the cached tensors. Queries and the result are [batch, tokens, heads, head_dim]. `sinks` returns a logit
    per head [heads] that joins each softmax and has no value.
    """

    mask: Mask
    scale: float
    widths: tuple[int, ...]
    expand: Callable[[Rows], tuple[Tensor, Tensor]]
    softcap: float | None = None
    sinks: Callable[[], Tensor] | None = None

    def __call__(self, query: Tensor, new: Rows, context: Context, cache: LayerCache | None) -> Tensor:
        """Attend from new tokens to themselves and to cached ones, and add them to the cache."""
        if cache is not None and cache.defers:
            return cache.defer(self, query, new, self.expand(new)[1].shape[-1])
        if context.recomputes_core and cache is None and torch.is_grad_enabled():
            return self._again_backward(query, new, context)
        return self._core(query, new, context, cache)

    def _again_backward(self, query: Tensor, new: Rows, context: Context) -> Tensor:
        """Without a cache; autograd keeps the query and the rows alone, and the backward pass attends once more."""

        def core(query: Tensor, *new: Tensor) -> Tensor:
            return self._core(query, new, context, None)

        result: Tensor = checkpoint(core, query, *new, use_reentrant=False, preserve_rng_state=False)
        return result

    def _core(self, query: Tensor, new: Rows, context: Context, cache: LayerCache | None) -> Tensor:
        query = query.transpose(1, 2)
        layout = context.layout
        if not layout.is_uniform or (layout.num_new is not None and isinstance(self.mask, NoMask)):
            result = self._by_mask(query, new, context, cache)
        elif cache is None or isinstance(self.mask, NoMask):
            result = self._from_start(query, new, context)
        elif layout.num_new is not None:
            result = self._from_start(query, new, context)
            cache.write_ragged(new, torch.zeros_like(layout.num_new), layout.num_new)
        elif layout.num_tokens == 1:
            result = self._one_more(query, new, cache, layout.start)
        else:
            result = self._with_cache(query, new, context, cache)
        return result.transpose(1, 2)

    def _one_more(self, query: Tensor, new: Rows, cache: LayerCache, start: int) -> Tensor:
        """One token of each sequence: it takes its slot, and attends to all that are filled, in whatever order.

        Of a ring it takes the slot of the token that leaves the window, of chunks the one after this chunk's last.
        """
        slot = start % cache.num_slots
        cache.write(new, slot)
        stop = slot + 1 if isinstance(self.mask, ChunkedMask) else min(start + 1, cache.num_slots)
        return self._attend(query, *self.expand(cache.read(self.widths, 0, stop)))

    def _from_start(self, query: Tensor, new: Rows, context: Context) -> Tensor:
        """Sequences that begin with these tokens: queries [batch, heads, tokens, head_dim]."""
        num_tokens = query.shape[2]
        match self.mask:
            case NoMask():
                return self._attend(query, *self.expand(new))
            case GridWindowMask(size=size):
                return self._windowed(query, new, context.layout.grid, size)
            case ChunkedMask(size=size) if num_tokens > size:
                return self._folded(query, new, size)
            case SlidingWindowMask(size=size) if num_tokens > size:
                return self._banded(query, new, context, size)
        return self._attend(query, *self.expand(new), causal=True)

    def _windowed(self, query: Tensor, rows: Rows, grid: tuple[int, int], size: int) -> Tensor:
        """Windows of a grid of patches, row by row: whole ones become a batch, and so do those of each edge."""
        height, width = grid
        key, value = self.expand(rows)
        if max(grid) <= size:
            return self._attend(query, key, value)
        bands = []
        for top, bottom in _pieces(height, size):
            parts = []
            for left, right in _pieces(width, size):
                area = (top, bottom, left, right)
                cut = (_cut(x, grid, area, size) for x in (query, key, value))
                parts.append(_laid(self._attend(*cut), area, size))
            bands.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=2))
        whole = bands[0] if len(bands) == 1 else torch.cat(bands, dim=1)
        return whole.flatten(1, 2).transpose(1, 2)

    def _with_cache(self, query: Tensor, new: Rows, context: Context, cache: LayerCache) -> Tensor:
        """Uniform rows after `start` cached tokens."""
        start, num_tokens = context.layout.start, query.shape[2]
        if isinstance(self.mask, ChunkedMask):
            return self._chunk_by_chunk(query, new, context, cache, self.mask.size)
        if isinstance(self.mask, SlidingWindowMask) and start + num_tokens > cache.num_slots:
            return self._round_the_ring(query, new, context, cache)
        cache.write(new, start)
        if start == 0:
            return self._from_start(query, new, context)
        return self._after_past(query, cache.read(self.widths, 0, start + num_tokens), context)

    def _chunk_by_chunk(self, query: Tensor, new: Rows, context: Context, cache: LayerCache, size: int) -> Tensor:
        """Finish the chunk that the cache holds, then whole chunks, and leave the last one in the cache."""
        num_tokens, slot = query.shape[2], context.layout.start % size
        if slot == 0 and num_tokens > size:
            num_last = (num_tokens - 1) % size + 1
            cache.write(_columns(new, num_tokens - num_last, num_tokens), 0)
            return self._folded(query, new, size)
        here = min(num_tokens, size - slot)
        cache.write(_columns(new, 0, here), slot)
        result = self._after_past(query[:, :, :here], cache.read(self.widths, 0, slot + here), context)
        if here == num_tokens:
            return result
        rest, num_rest = _columns(new, here, num_tokens), num_tokens - here
        num_last = (num_rest - 1) % size + 1
        cache.write(_columns(rest, num_rest - num_last, num_rest), 0)
        later = self._folded(query[:, :, here:], rest, size)
        return torch.cat((result, later), dim=2)

    def _round_the_ring(self, query: Tensor, new: Rows, context: Context, cache: LayerCache) -> Tensor:
        """A window whose ring is full, or fills now."""
        start, size = context.layout.start, cache.num_slots
        num_old = min(start, size - 1)
        old = cache.read_ring(self.widths, start, num_old)
        rows = tuple(torch.cat(pair, dim=1) for pair in zip(old, new, strict=True))
        result = self._banded(query, rows, context, size)
        cache.write_ring(new, start)
        return result

    def _folded(self, query: Tensor, rows: Rows, size: int) -> Tensor:
        """Aligned chunks from their first token on: whole chunks become a batch, the last partial one is separate."""
        num_tokens = query.shape[2]
        num_chunks, num_left = num_tokens // size, num_tokens % size  # divmod does not compile
        whole = num_chunks * size
        key, value = self.expand(rows)
        results = []
        if num_chunks:
            parts = (_fold(tensor[:, :, :whole], size) for tensor in (query, key, value))
            results.append(_unfold(self._attend(*parts, causal=True), num_chunks))  # which may copy: keep but one
        if num_left:
            parts = (tensor[:, :, whole:] for tensor in (query, key, value))
            results.append(self._attend(*parts, causal=True))
        return results[0] if len(results) == 1 else torch.cat(results, dim=2)

    def _after_past(self, query: Tensor, rows: Rows, context: Context) -> Tensor:
        """Causal queries that are the last tokens of `rows`."""
        if query.shape[2] == rows[0].shape[1]:
            return self._attend(query, *self.expand(rows), causal=True)
        if query.shape[2] == 1:
            return self._attend(query, *self.expand(rows))
        return self._banded(query, rows, context, None)

    def _banded(self, query: Tensor, rows: Rows, context: Context, window: int | None) -> Tensor:
        """Blocks of queries, each with the keys that any of its queries sees; queries are the last tokens of `rows`."""
        num_queries, num_keys = query.shape[2], rows[0].shape[1]
        offset = num_keys - num_queries
        key, value = self.expand(rows)
        results = []
        for first in range(0, num_queries, BLOCK):
            last = min(first + BLOCK, num_queries)
            low = 0 if window is None else max(0, offset + first + 1 - window)
            high = offset + last
            band = context.once(
                f"band {first + offset - low} {last - first} {high - low} {window}",
                _band_maker(first + offset - low, last - first, high - low, window, query.device),
            )
            block = (query[:, :, first:last], key[:, :, low:high], value[:, :, low:high])
            results.append(self._attend(*block, allowed=band))
        return results[0] if len(results) == 1 else torch.cat(results, dim=2)

    def _by_mask(self, query: Tensor, new: Rows, context: Context, cache: LayerCache | None) -> Tensor:
        """Any layout, by an explicit mask over cached and new tokens."""
        layout = context.layout
        name = f"allowed {self.mask.model_dump_json()}"
        if cache is None:
            allowed = context.once(name, lambda: allowed_keys(self.mask, layout, own_positions(layout)))
            return self._attend(query, *self.expand(new), allowed=allowed)
        lengths = layout.lengths
        assert lengths is not None, "packed sequences are not cached"
        name += f" {cache.num_slots}"
        if layout.num_tokens == 1 and layout.num_new is None:
            cache.write_one_each(new, lengths)
            stop = min(cache.num_slots, layout.start + 1)
            allowed = context.once(
                name, lambda: allowed_keys(self.mask, layout, cache.slot_positions(lengths + 1)[:, :stop], own=False)
            )
            return self._attend(query, *self.expand(cache.read(self.widths, 0, stop)), allowed=allowed)
        stop = min(cache.num_slots, layout.start)
        old = cache.read(self.widths, 0, stop)
        rows = tuple(torch.cat(pair, dim=1) for pair in zip(old, new, strict=True))
        allowed = context.once(
            name,
            lambda: allowed_keys(
                self.mask, layout, torch.cat((cache.slot_positions(lengths)[:, :stop], own_positions(layout)), dim=1)
            ),
        )
        result = self._attend(query, *self.expand(rows), allowed=allowed)
        num_new = torch.full_like(lengths, layout.num_tokens) if layout.num_new is None else layout.num_new
        cache.write_ragged(new, lengths, num_new)
        return result

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, allowed: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """softmax(query key^T * scale) value for all heads; grouped keys and values are not repeated."""
        if self.softcap is not None or self.sinks is not None:
            return self._unfused(query, key, value, allowed, causal=causal)
        heads, kv_heads = query.shape[1], key.shape[1]
        is_folded = query.shape[2] == 1 and heads != kv_heads
        if is_folded:  # one query per head: the heads of a group are queries of its key head, which reads keys once
            query = query.reshape(-1, kv_heads, heads // kv_heads, query.shape[-1])
        num_wanted = value.shape[-1]
        if num_wanted != query.shape[-1]:  # the fused kernels take one width
            query, key, value = _as_wide_as_the_widest(query, key, value)
        result = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=allowed,
            is_causal=causal,
            scale=self.scale,
            enable_gqa=query.shape[1] != kv_heads,
        )
        if result.shape[-1] != num_wanted:
            result = result[..., :num_wanted]
        return result.reshape(-1, heads, 1, num_wanted) if is_folded else result

    def _unfused(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, *, causal: bool) -> Tensor:
        """Capped scores and sinks, in blocks of queries: no more than BLOCK * keys scores of a head live at once."""
        num_queries = query.shape[2]
        results = []
        for first in range(0, num_queries, BLOCK):
            last = min(first + BLOCK, num_queries)
            seen = None if allowed is None else allowed[..., first:last, :]
            high = key.shape[2]
            if causal:
                high, seen = last, _band_maker(first, last - first, last, None, query.device)()
            block = (query[:, :, first:last], key[:, :, :high], value[:, :, :high])
            results.append(self._unfused_block(*block, seen))
        return results[0] if len(results) == 1 else torch.cat(results, dim=2)

    def _unfused_block(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
        """Scores [batch, kv_heads, group * queries, keys]: the query heads of a group are queries to its key head."""
        batch, heads, num_queries, dim = query.shape
        kv_heads, num_keys = key.shape[1], key.shape[2]
        grouped = query.reshape(batch, kv_heads, heads // kv_heads * num_queries, dim)
        scores = soft_cap((grouped @ key.transpose(2, 3)) * self.scale, self.softcap)
        if seen is not None:
            by_head = scores.view(batch, kv_heads, heads // kv_heads, num_queries, num_keys)
            seen = seen if seen.dim() == 2 else seen[:, None]
            scores = by_head.masked_fill(~seen, float("-inf")).view_as(scores)
        weights = self._weights(wide(scores), num_queries).to(query.dtype)
        return (weights @ value).view(batch, heads, num_queries, value.shape[-1])

    def _weights(self, scores: Tensor, num_queries: int) -> Tensor:
        """Softmax over keys of scores [batch, kv_heads, group * queries, keys], the sinks' logits beside them."""
        if self.sinks is None:
            return scores.softmax(dim=-1)
        sinks = self.sinks().to(scores.dtype).view(scores.shape[1], -1).repeat_interleave(num_queries, dim=1)
        return softmax_beside(scores, sinks)


def softmax_beside(scores: Tensor, sinks: Tensor) -> Tensor:
    """Softmax over keys of scores [..., keys], whose memory is reused, with a sink's logit [...] beside each row.

    Not exp(scores - their log-sum-exp): of 1e4, that is rounded to 1e-3 in fp32, and every weight would be off by it.
    """
    largest = torch.maximum(scores.detach().amax(dim=-1), sinks.detach())
    shares = scores.sub_(largest[..., None]).exp_()
    return shares / (shares.sum(dim=-1) + (sinks - largest).exp())[..., None]


def _as_wide_as_the_widest(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Zeros after the last dimension of the narrower ones, which change no score and no value."""
    width = max(tensor.shape[-1] for tensor in tensors)
    return tuple(widened(x, width) for x in tensors)


def widened(x: Tensor, width: int) -> Tensor:
    """`x` with zeros after its last dimension up to this width."""
    return x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1]))


def _columns(rows: Rows, start: int, stop: int) -> Rows:
    return tuple(tensor[:, start:stop] for tensor in rows)


def _fold(x: Tensor, size: int) -> Tensor:
    """[batch, heads, n * size, dim] to [batch * n, heads, size, dim], without a copy of token-major tensors."""
    _, heads, _, dim = x.shape
    return x.transpose(1, 2).reshape(-1, size, heads, dim).transpose(1, 2)


def _unfold(x: Tensor, num_chunks: int) -> Tensor:
    _, heads, size, dim = x.shape
    return x.transpose(1, 2).reshape(-1, num_chunks * size, heads, dim).transpose(1, 2)


def _pieces(length: int, size: int) -> Iterator[tuple[int, int]]:
    """First and last index of the whole windows along a side, then of the remainder."""
    whole = length // size * size
    return (piece for piece in ((0, whole), (whole, length)) if piece[1] > piece[0])


def _cut(x: Tensor, grid: tuple[int, int], area: tuple[int, int, int, int], size: int) -> Tensor:
    """Windows of an area of a grid: [batch, heads, patches, dim] to [batch * windows, heads, patches of one, dim]."""
    top, bottom, left, right = area
    height, width = bottom - top, right - left
    inside = x.transpose(1, 2).view(x.shape[0], *grid, *x.shape[1::2])[:, top:bottom, left:right]
    rows, columns = min(size, height), min(size, width)
    windows = inside.view(-1, height // rows, rows, width // columns, columns, *x.shape[1::2]).transpose(2, 3)
    return windows.contiguous().view(-1, rows * columns, *x.shape[1::2]).transpose(1, 2)


def _laid(x: Tensor, area: tuple[int, int, int, int], size: int) -> Tensor:
    """The reverse of `_cut`: to [batch, rows, columns, heads, dim] of the area."""
    top, bottom, left, right = area
    height, width = bottom - top, right - left
    rows, columns = min(size, height), min(size, width)
    parts = (-1, height // rows, width // columns, rows, columns, *x.shape[1::2])
    return x.transpose(1, 2).view(parts).transpose(2, 3).reshape(-1, height, width, *x.shape[1::2])


def _band_maker(
    offset: int, num_queries: int, num_keys: int, window: int | None, device: torch.device
) -> Callable[[], Tensor]:
    """Query i is at key offset + i and sees the keys up to there, the last `window` of them."""

    def make() -> Tensor:
        place = torch.arange(num_queries, device=device)[:, None] + offset
        key = torch.arange(num_keys, device=device)
        band = key <= place
        return band if window is None else band & (key > place - window)

    return make


def own_positions(layout: TokenLayout) -> Tensor:
    """Positions of the new tokens as keys [rows, tokens]; -1 for columns that hold none."""
    positions = layout.positions.expand(layout.num_rows, -1)
    valid = layout.valid()
    return positions if valid is None else torch.where(valid, positions, -1)


def allowed_keys(mask: Mask, layout: TokenLayout, key_positions: Tensor, *, own: bool = True) -> Tensor:
    """Mask of attended keys, [rows, 1, queries, keys]; with `own`, the last keys are the queries' own.

    A query always attends to itself, so that columns without a token stay finite.
    """
    key = key_positions[:, None, :]
    query = layout.positions.expand(layout.num_rows, -1)[:, :, None]
    allowed = (key >= 0) & torch.ones_like(query, dtype=torch.bool)
    if not isinstance(mask, NoMask):
        allowed &= key <= query
    if isinstance(mask, ChunkedMask):
        allowed &= torch.div(key, mask.size, rounding_mode="floor") == query // mask.size
    if isinstance(mask, SlidingWindowMask):
        allowed &= key > query - mask.size
    if layout.sequence_ids is not None:
        allowed &= layout.sequence_ids[:, None, :] == layout.sequence_ids[:, :, None]
    if own:
        num_queries = layout.num_tokens
        itself = torch.eye(num_queries, dtype=torch.bool, device=key.device)
        allowed = allowed | pad(itself, (key.shape[-1] - num_queries, 0))
    return allowed[:, None]
