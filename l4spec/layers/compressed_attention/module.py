"""The torch module of attention to a window and to compressed entries."""

import torch
from torch import Tensor, nn

from l4spec.layers.attention.compute import softmax_beside
from l4spec.layers.attention.key_selection import selected_keys
from l4spec.layers.attention.rope import Rotation
from l4spec.layers.base import Width
from l4spec.layers.common.cache import CacheOfLaws, LayerCache, split_last
from l4spec.layers.common.modules import (
    Context,
    LayerModule,
    Linear,
    TokenLayout,
    empty,
    group_last,
    rms_norm,
    wide,
)
from l4spec.layers.compressed_attention.pairs import Band, bands
from l4spec.layers.compressed_attention.rows import (
    SeenRows,
    all_entries,
    entries_seen,
    old_rows,
    window_rows,
    window_seen,
    write_rows,
)
from l4spec.layers.compressed_attention.spec import CompressedAttentionSpec, Compression, EntryIndex
from l4spec.layers.compressed_attention.windows import Compressor, FinishedWindows, WideNorm, finished


class Index(Compressor):
    """Index that selects entries: it has small keys of its own, scored by queries computed from the latent."""

    def __init__(self, spec: CompressedAttentionSpec, compression: Compression, index: EntryIndex, hidden: int) -> None:
        super().__init__(hidden, index.head_dim, compression, spec.norm_eps)
        self.index_num_heads, self.index_head_dim, self.index_topk = index.num_heads, index.head_dim, index.topk
        self.q_b_proj = Linear(spec.q_lora_rank, index.num_heads * index.head_dim, bias=False)
        self.weights_proj = Linear(hidden, index.num_heads, bias=False)


class GroupedLinear(nn.Module):
    """A matrix [groups * out, in] that each group of a token's heads meets its own rows of."""

    def __init__(self, groups: int, into: int, out: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = empty(groups * out, into)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, groups * in] to [batch, tokens, groups * out]."""
        by_group = group_last(x, self.groups, -1).flatten(0, 1).transpose(0, 1)
        weight = self.weight.view(self.groups, -1, by_group.shape[-1]).transpose(1, 2)
        return (by_group @ weight).transpose(0, 1).reshape(*x.shape[:-1], -1)


class CompressedAttention(LayerModule):
    """One key for all heads, which is its value too, of each token of the window and of each entry.

    So values are rotated by their positions, and the attended values are rotated back by the query's.
    """

    def __init__(self, spec: CompressedAttentionSpec, width: Width) -> None:
        super().__init__()
        self.spec, hidden = spec, width.hidden_size
        self.q_a_proj = Linear(hidden, spec.q_lora_rank, bias=False)
        self.q_a_norm = WideNorm(spec.q_lora_rank, spec.norm_eps)
        self.q_b_proj = Linear(spec.q_lora_rank, spec.num_heads * spec.head_dim, bias=False)
        self.kv_proj = Linear(hidden, spec.head_dim, bias=False)
        self.kv_norm = WideNorm(spec.head_dim, spec.norm_eps)
        self.sinks = empty(spec.num_heads)
        self.o_a_proj = GroupedLinear(spec.num_output_groups, spec.group_width, spec.output_lora_rank)
        self.o_b_proj = Linear(spec.num_output_groups * spec.output_lora_rank, hidden, bias=False)
        self.rotation = Rotation.of(spec.position, spec.rope_head_dim)
        self.compressor: Compressor | None = None
        self.index: Index | None = None
        if spec.compression is not None:
            self.compressor = Compressor(hidden, spec.head_dim, spec.compression, spec.norm_eps)
            if spec.compression.index is not None:
                self.index = Index(spec, spec.compression, spec.compression.index, hidden)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to [batch, tokens, hidden]."""
        spec, layout = self.spec, context.layout
        latent = self.q_a_norm(self.q_a_proj(x))
        query = rms_norm(group_last(self.q_b_proj(latent), spec.num_heads, -1), None, spec.norm_eps)
        query = self._rotated(query, layout.positions)
        key = self._rotated(self.kv_norm(self.kv_proj(x))[:, :, None], layout.positions)[:, :, 0]
        cache = context.cache_of(self.node_id)
        parts = cache.parts if isinstance(cache, CacheOfLaws) else (cache, None, None)
        near = window_rows(key, layout, spec.window, parts[0])
        far = self._entries(x, layout, parts[1], parts[2])
        attended = self._attend(query, near, far, self._index_queries(x, latent, layout), layout)
        attended = self._rotated(attended, layout.positions, back=True)
        result: Tensor = self.o_b_proj(self.o_a_proj(attended.flatten(-2)))
        return result

    def _rotated(self, x: Tensor, positions: Tensor, *, back: bool = False) -> Tensor:
        """The last part of heads [batch, tokens, heads, width] rotated by positions."""
        rest, rotated = split_last(x, (x.shape[-1] - self.spec.rope_head_dim, self.spec.rope_head_dim))
        return torch.cat((rest, self.rotation.at(rotated, positions, back=back)), dim=-1)

    def _entries(
        self, x: Tensor, layout: TokenLayout, kept: LayerCache | None, waiting: LayerCache | None
    ) -> SeenRows | None:
        """Entries of earlier tokens and of these, [batch, entries, head_dim (+ index_head_dim)]."""
        if self.compressor is None:
            return None
        windows = finished(layout, self.compressor.compression, cached=kept is not None)
        rows = self.compressor.gated(x)
        if self.index is not None:
            with torch.no_grad():
                indexed = self.index.gated(x)
            rows = torch.cat((rows, indexed), dim=-1)
        old = None if waiting is None or not windows.num_old else old_rows(waiting, layout, windows.num_old)
        if not windows.count:
            width = self.spec.head_dim + (0 if self.index is None else self.index.key_width)
            new = rows.new_zeros(layout.num_rows, 0, width)
        else:
            new = self._compressed(rows if old is None else torch.cat((old, rows), dim=1), windows)
        if waiting is not None:
            write_rows(waiting, rows, layout)
        return all_entries(new, windows, layout, self.compressor.compression.ratio, kept)

    def _compressed(self, rows: Tensor, windows: FinishedWindows) -> Tensor:
        assert self.compressor is not None
        if self.index is None:
            return self._rotated_entries(self.compressor.entries(rows, windows), windows)
        widths = (
            2 * self.compressor.compression.num_series * width for width in (self.spec.head_dim, self.index.key_width)
        )
        rows, indexed = split_last(rows, tuple(widths))
        entries = self._rotated_entries(self.compressor.entries(rows, windows), windows)
        with torch.no_grad():
            keys = self._rotated_entries(self.index.entries(indexed, windows), windows)
        return torch.cat((entries, keys), dim=-1)

    def _rotated_entries(self, entries: Tensor, windows: FinishedWindows) -> Tensor:
        return self._rotated(entries[:, :, None], windows.starts)[:, :, 0]

    @torch.no_grad()
    def _index_queries(self, x: Tensor, latent: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor] | None:
        """Queries of the index [batch, tokens, heads * width], and the weight of each head [batch, tokens, heads]."""
        if self.index is None:
            return None
        query = group_last(self.index.q_b_proj(latent), self.index.index_num_heads, -1)
        return self._rotated(query, layout.positions).flatten(-2), self.index.weights_proj(x)

    def _attend(
        self,
        query: Tensor,
        near: SeenRows,
        far: SeenRows | None,
        index_queries: tuple[Tensor, Tensor] | None,
        layout: TokenLayout,
    ) -> Tensor:
        """[batch, tokens, heads, head_dim], band by band where places decide what is seen, else at once."""
        ratio = None if self.compressor is None else self.compressor.compression.ratio
        whole = Band(0, layout.num_tokens, 0, near.rows.shape[1], 0 if far is None else far.rows.shape[1])
        rows_differ = near.seen is not None
        walked = (whole,) if rows_differ else tuple(bands(layout.num_tokens, layout.start, self.spec.window, ratio))
        results = []
        for band in walked:
            rows, seen = [near.rows[:, band.low : band.high]], [window_seen(near, band, layout, self.spec.window)]
            if far is not None and band.entries:
                entries, seen_entries = far.rows[:, : band.entries], entries_seen(far, band, layout, ratio or 1)
                if index_queries is not None and self.index is not None:
                    entries, keys = split_last(entries, (self.spec.head_dim, self.index.key_width))
                    query_part, weights = (part[:, band.first : band.last] for part in index_queries)
                    seen_entries = seen_entries if seen_entries.dim() == 2 else seen_entries[:, None]
                    seen_entries = selected_keys(self.index, query_part, weights, keys, seen_entries)
                rows.append(entries)
                seen.append(seen_entries)
            results.append(self._weighed(query[:, band.first : band.last], rows, seen))
        return results[0] if len(results) == 1 else torch.cat(results, dim=1)

    def _weighed(self, query: Tensor, rows: list[Tensor], seen: list[Tensor]) -> Tensor:
        """Of a band [batch, queries, heads, width] the weighed sums of the rows [batch, rows, width] that it sees."""
        batch, num_queries, heads, dim = query.shape
        keys = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        by_head = query.transpose(1, 2).reshape(batch, heads * num_queries, dim)
        scores = wide((by_head @ keys.transpose(1, 2)) * dim**-0.5).view(batch, heads, num_queries, -1)
        allowed = torch.cat([each.expand(batch, num_queries, -1) for each in seen], dim=-1)
        scores = scores.masked_fill(~allowed[:, None], float("-inf"))
        sinks = wide(self.sinks)[:, None].expand(batch, heads, num_queries)
        weights = softmax_beside(scores, sinks).to(query.dtype).view(batch, heads * num_queries, -1)
        return (weights @ keys).view(batch, heads, num_queries, dim).transpose(1, 2)
