"""Attention of a rank that has a run of a sequence's tokens, with keys and values of earlier ones from other ranks.

Ring attention (arXiv:2310.01889) along a line: cached rows are sent from each rank to the next, block by block, while
the current block is attended to; since every mask here is causal, nothing is sent from the last rank to the first.
Partial results are merged by their log-sum-exp in fp32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from l4spec.layers.attention.compute import Attention, widened
from l4spec.layers.attention.masks import CausalMask, Mask, SlidingWindowMask, seen_before
from l4spec.layers.attention.walk import BLOCK
from l4spec.layers.common.cache import LayerCache, Rows, split_last
from l4spec.layers.common.modules import Context, soft_cap, wide
from l4spec.layers.common.parallel import Axis, pass_on
from l4spec.units import ceil_div

_WIDEST_ON_CUDA = 256
"""Head width up to which CUDA's flash attention runs."""


@dataclass(frozen=True, slots=True)
class RingAttention(Attention):
    """Attention along `cp`, if the layout of a forward pass divides its sequences; without gradients.

    A cache takes this rank's tokens: the token at place p of its run is in slot p % num_slots.
    """

    cp: Axis = field(default_factory=Axis)

    @classmethod
    def of(cls, attention: Attention, cp: Axis) -> Attention:
        """The same attention, along `cp` where that is more than one rank."""
        if cp.size == 1:
            return attention
        return cls(**{known.name: getattr(attention, known.name) for known in fields(Attention)}, cp=cp)

    def __call__(self, query: Tensor, new: Rows, context: Context, cache: LayerCache | None) -> Tensor:
        """Attend from this rank's tokens to themselves and to the visible ones of earlier ranks."""
        runs = context.layout.runs
        if not runs:  # a vision tower, or sequences that are whole
            return Attention.__call__(self, query, new, context, cache)
        if cache is not None:
            cache.write_ring(new, 0)
        query = query.transpose(1, 2)
        match self.mask:
            case CausalMask():
                result = self._block_by_block(query, new, runs)
            case SlidingWindowMask(size=size):
                blocks = list(_passing(torch.cat(new, dim=-1), self.mask, runs, self.cp))
                rows = split_last(torch.cat(blocks[::-1], dim=1), self.widths)
                result = self._banded(query, rows, context, size)
            case _:  # chunks, which no rank shares
                result = self._from_start(query, new, context)
        return result.transpose(1, 2)

    def _block_by_block(self, query: Tensor, new: Rows, runs: tuple[range, ...]) -> Tensor:
        """Own tokens causally, all of each earlier rank's."""
        merged: Merged | None = None
        for rows in _passing(torch.cat(new, dim=-1), self.mask, runs, self.cp):
            key, value = self.expand(split_last(rows, self.widths))
            part = attend_with_sums(query, key, value, causal=merged is None, scale=self.scale, cap=self.softcap)
            if merged is None:
                merged = Merged(*part)
            else:
                merged.add(*part)
        assert merged is not None
        result = merged.result
        return (result if self.sinks is None else beside_sinks(result, merged.sums, self.sinks())).to(query.dtype)


def beside_sinks(result: Tensor, sums: Tensor, sinks: Tensor) -> Tensor:
    """Attention [batch, heads, queries, width] with a sink beside the keys, from the result over the keys alone.

    `sums` [batch, heads, queries] are the softmaxes' log-sum-exps, `sinks` [heads] logits: e^s / (e^s + e^sink) of each
    weight is left (gpt-oss, arXiv:2508.10925).
    """
    return result * (sums - sinks.to(sums.dtype)[:, None]).sigmoid()[..., None]


def _passing(own: Tensor, mask: Mask, runs: tuple[range, ...], cp: Axis) -> Iterator[Tensor]:
    """This rank's rows [batch, tokens, width], then those of earlier ranks that its tokens see, nearest first.

    Meanwhile, the rows that the next rank needs are sent on.
    """
    num_wanted = seen_before(mask, runs[cp.index].start)
    num_to_send = seen_before(mask, runs[cp.index + 1].start) if cp.index + 1 < cp.size else 0
    rows, source = own, cp.index
    del own  # a block is freed when the next one has arrived
    while True:
        source -= 1
        num_sent = min(rows.shape[1], num_to_send)
        num_coming = min(len(runs[source]), num_wanted) if source >= 0 else 0
        sent = rows[:, rows.shape[1] - num_sent :].contiguous()
        coming = rows.new_empty(rows.shape[0], num_coming, rows.shape[2])
        wait = pass_on(sent, coming, cp)
        yield rows
        wait()
        if not num_coming:
            return
        rows = coming
        num_to_send -= num_sent
        num_wanted -= num_coming


class Merged:
    """Attention over several blocks of keys, from the results over each and their log-sum-exps.

    `result` is [batch, heads, queries, width], `sums` [batch, heads, queries], both in fp32 (fp64 in a model of fp64).
    """

    def __init__(self, result: Tensor, sums: Tensor) -> None:
        self.result, self.sums = result.to(sums.dtype), sums

    def add(self, result: Tensor, sums: Tensor) -> None:
        """Take in another block."""
        more = sums - self.sums  # shares are not exp(sums - their sum), whose rounding grows with the scores
        self.result.mul_((-more).sigmoid()[..., None])
        self.result.addcmul_(result, more.sigmoid()[..., None])
        self.sums = torch.logaddexp(self.sums, sums)


def attend_with_sums(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(query key^T * scale) value, and the log of each softmax's sum [batch, heads, queries] in fp32.

    By a fused kernel where there is one that tells the sums; grouped keys and values are not repeated. `causal`
    queries are at the places of the keys.
    """
    width = max(query.shape[-1], value.shape[-1])
    value_width = value.shape[-1]
    if cap is None and query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        query, key, value = (widened(x, width) for x in (query, key, value))
        result, sums = kernel(query, key, value, 0.0, causal, scale=scale)
    elif cap is None and query.device.type == "cuda" and query.itemsize == 2 and width <= _WIDEST_ON_CUDA:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        query, key, value = (widened(x, ceil_div(width, 8) * 8) for x in (query, key, value))
        result, sums = kernel(query, key, value, 0.0, causal, scale=scale)[:2]
    else:
        return _plain(query, key, value, causal=causal, scale=scale, cap=cap)
    return result[..., :value_width], sums


def _plain(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    """In blocks of queries, so that no more than BLOCK * keys scores live at once."""
    blocks = [
        _plain_block(query[:, :, first : first + BLOCK], key, value, first if causal else None, scale=scale, cap=cap)
        for first in range(0, query.shape[2], BLOCK)
    ]
    results, sums = zip(*blocks, strict=True)
    return torch.cat(results, dim=2), torch.cat(sums, dim=2)


def _plain_block(
    query: Tensor, key: Tensor, value: Tensor, first: int | None, *, scale: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Queries from the place `first` on, or after all keys; the query heads of a group share their key head."""
    batch, heads, num_queries, dim = query.shape
    kv_heads, num_keys = key.shape[1], key.shape[2]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads * num_queries, dim)
    scores = wide(soft_cap((grouped @ key.transpose(2, 3)) * scale, cap))
    if first is not None:
        places = torch.arange(first, first + num_queries, device=key.device)
        later = torch.arange(num_keys, device=key.device) > places[:, None]
        by_head = scores.view(batch, kv_heads, -1, num_queries, num_keys)
        scores = by_head.masked_fill(later, float("-inf")).view_as(scores)
    sums = scores.logsumexp(dim=-1)
    weights = scores.softmax(dim=-1).to(query.dtype)
    return (weights @ value).view(batch, heads, num_queries, -1), sums.view(batch, heads, num_queries)
