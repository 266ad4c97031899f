"""Decode steps of our model and of the reference, behind the same prefix and on the same tokens."""

import copy
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed_models import Routing, touched_bytes
from benchmarks.speed_timing import Timed
from l4spec.runtime.cache import Cache
from l4spec.runtime.model import Model

PIECE = 1024
"""Tokens of a prompt that are read at once."""


def prefilled(model: Model, prefix: Tensor, num_steps: int) -> Cache:
    """A cache that has read `prefix` [rows, tokens], with room for `num_steps` tokens more."""
    cache = model.new_cache(prefix.shape[0], prefix.shape[1] + num_steps)
    for piece in prefix.split(PIECE, dim=1):
        model(piece, cache=cache, logits="last")
    return cache


def our_steps(model: Model, prefix: Tensor, tokens: Tensor) -> Timed:
    """One step per column of `tokens` [rows, steps] behind `prefix`.

    Before each run the cache is put back to what it was behind the prefix.
    """
    cache = prefilled(model, prefix, tokens.shape[1])
    kept = {name: layer.data.clone() for name, layer in cache.layers.items()}

    def rewind() -> None:
        cache.length = prefix.shape[1]
        for name, layer in cache.layers.items():
            layer.data.copy_(kept[name])

    def run() -> None:
        for column in tokens.split(1, dim=1):
            model(column, cache=cache)

    return Timed(run, rewind)


def reference_steps(other: Any, prefix: Tensor, tokens: Tensor) -> Timed:
    """The same with transformers and the cache it makes by default."""
    kept = other(prefix, use_cache=True, logits_to_keep=1).past_key_values
    held: list[Any] = []

    def rewind() -> None:
        held[:] = [copy.deepcopy(kept)]

    def run() -> None:
        for column in tokens.split(1, dim=1):
            other(column, past_key_values=held[0], use_cache=True)

    return Timed(run, rewind)


def bytes_per_step(model: Model, prefix: Tensor, tokens: Tensor) -> float:
    """Bytes of weights that a step touches, on average over the columns of `tokens`."""
    cache = prefilled(model, prefix, tokens.shape[1])
    columns = tokens.split(1, dim=1)
    return sum(touched_bytes(model, Routing.of(model, column, cache=cache)) for column in columns) / len(columns)


def logits_behind(model: Model, other: Any, prefix: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of one more token, ours and the reference's."""
    with torch.no_grad():
        mine = model(token, cache=prefilled(model, prefix, 1))
        past = other(prefix, use_cache=True, logits_to_keep=1).past_key_values
        return mine, other(token, past_key_values=past, use_cache=True).logits
