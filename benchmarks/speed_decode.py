"""Decode steps of our model and of the reference, after the same prefix and on the same tokens."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed_models import Routing, touched_bytes
from benchmarks.speed_timing import Timed
from l4spec.runtime.cache import Cache
from l4spec.runtime.model import Model

PIECE = 1024
"""Tokens of a prompt that are read at once."""


def prefilled(model: Model, prefix: Tensor, num_steps: int = 0) -> Cache:
    """A cache that has read `prefix` [rows, tokens], with room for `num_steps` tokens more."""
    cache = model.new_cache(prefix.shape[0], prefix.shape[1] + num_steps)
    for piece in torch.split(prefix, PIECE, dim=1):
        model(piece, cache=cache, logits="last")
    return cache


def our_steps(model: Model, prefix: Tensor, tokens: Tensor, read: Callable[..., Tensor] | None = None) -> Timed:
    """One step per column of `tokens` [rows, steps] after `prefix`, by the model or by what else may `read`.

    Before each run the cache is put back to what it was after the prefix.
    """
    cache, step = prefilled(model, prefix, tokens.shape[1]), read or model
    kept = {name: layer.data.clone() for name, layer in cache.layers.items()}

    def rewind() -> None:
        cache.length = prefix.shape[1]
        for name, layer in cache.layers.items():
            layer.data.copy_(kept[name])

    def run() -> None:
        for column in torch.split(tokens, 1, dim=1):
            step(column, cache=cache)

    return Timed(run, rewind)


def reference_steps(other: Any, past: Any, tokens: Tensor) -> Timed:
    """The same with transformers, after its own cache `past` of one sequence, repeated for every row of `tokens`."""
    kept: list[Any] = []

    def rewind() -> None:
        kept[:] = [copy.deepcopy(past)]
        kept[0].batch_repeat_interleave(tokens.shape[0])

    def run() -> None:
        for column in torch.split(tokens, 1, dim=1):
            other(column, past_key_values=kept[0], use_cache=True)

    return Timed(run, rewind)


def bytes_per_step(model: Model, prefix: Tensor, tokens: Tensor) -> float:
    """Bytes of weights that a step touches, on average over the columns of `tokens`."""
    cache = prefilled(model, prefix, tokens.shape[1])
    columns = torch.split(tokens, 1, dim=1)
    return sum(touched_bytes(model, Routing.of(model, column, cache=cache)) for column in columns) / len(columns)
