"""Attention as our layers call it: a prompt from its start, queries after a past, and a decode step over a cache."""

from dataclasses import replace
from functools import partial
from itertools import product as grid

import torch
from torch import Tensor

from l4spec.layers.attention.compute import Attention
from l4spec.layers.attention.masks import CausalMask
from l4spec.layers.common.cache import LayerCache, Rows
from l4spec.layers.common.modules import Context, TokenLayout, group_last
from l4spec.runtime.calibrate.buffers import Buffers
from l4spec.runtime.calibrate.tables import TableCases, Timed
from l4spec.runtime.calibrate.timing import Case, rotating

CAUSAL = CausalMask(kind="causal")


def _attention(kv_heads: int, width: int) -> Attention:
    def heads_first(rows: Rows) -> tuple[Tensor, Tensor]:
        key, value = (group_last(tensor, -1, width).transpose(1, 2) for tensor in rows)
        return key, value

    return Attention(CAUSAL, width**-0.5, (kv_heads * width, kv_heads * width), heads_first)


def causal(buffers: Buffers) -> TableCases:
    """Prompts from their start, half of the heads' worth of them in sequences of two heads each."""
    cases = []
    for units, tokens, width in grid(*buffers.sizes.causal):
        x = buffers.take(1, tokens, units, width)
        rows = tuple(buffers.beside(1, tokens, units // 2 * width) for _ in range(2))
        context = Context(TokenLayout(1, tokens, 0, torch.arange(tokens)))
        cases.append(Timed(partial(_attention(units // 2, width), x, rows, context, None), (x, *rows)))
    return replace(TableCases.both(buffers, buffers.sizes.causal, cases), squares=(1,))


def masked(buffers: Buffers) -> TableCases:
    """Queries that are the last of all keys, by an explicit mask that is made already."""
    cases = []
    for units, queries, keys, width in grid(*buffers.sizes.masked):
        x, place = buffers.take(1, units, queries, width), torch.arange(queries)[:, None] + keys - queries
        allowed = torch.arange(keys) <= place.clamp(min=0)
        key = buffers.beside(1, keys, units // 2, width).transpose(1, 2)
        run = partial(_attention(units // 2, width)._attend, x, key, key, allowed=allowed)
        cases.append(Timed(run, (x, buffers.beside(1, keys, units // 2, width))))
    return TableCases.both(buffers, buffers.sizes.masked, cases)


def cached(buffers: Buffers) -> TableCases:
    """A decode step of sequences of two key heads each: the new token is written, then everything is read."""
    hot, cold = [], []
    for units, group, tokens, width in grid(*buffers.sizes.cached):
        batch, kv_heads = (units // 2, 2) if units > 1 else (1, 1)
        attention = _attention(kv_heads, width)
        x = buffers.beside(batch, 1, kv_heads * group, width)
        new = tuple(buffers.beside(batch, 1, kv_heads * width) for _ in range(2))
        context = Context(TokenLayout(batch, 1, tokens - 1, torch.arange(1)))
        caches = [LayerCache(data) for data in buffers.pieces(batch, tokens, 2 * kv_heads * width)]
        steps = [partial(attention, x, new, context, cache) for cache in caches]
        hot.append(Case(steps[0]))
        cold.append(Case(rotating(steps)))
    return TableCases(buffers.sizes.cached, hot, cold)
