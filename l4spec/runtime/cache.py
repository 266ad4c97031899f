"""KV caches and recurrent states of a model: one preallocated cache per layer, and the number of tokens in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerNode
from l4spec.layers.common.cache import LayerCache, allocate, entry_dtype
from l4spec.runtime.memory_check import free_bytes
from l4spec.units import gib


@dataclass(slots=True, eq=False)
class Cache:
    """Caches by node id for `batch` sequences of at most `max_len` tokens.

    `length` counts the columns read so far. `lengths` [batch] counts each row's own tokens once rows differ (padding is
    never kept); None while all rows have `length`. `image_tokens` [batch] counts those of images if layers rotate by
    their places, for images of `image_grid` rows and columns; None before the first.
    """

    layers: dict[str, LayerCache]
    batch: int
    max_len: int
    length: int = 0
    lengths: Tensor | None = None
    image_tokens: Tensor | None = None
    image_grid: tuple[int, int] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes allocated, over all layers."""
        return sum(layer.num_bytes for layer in self.layers.values())

    def reset(self) -> None:
        """Forget every token; the memory stays."""
        self.length, self.lengths = 0, None
        self.image_tokens = self.image_grid = None

    def advance(self, num_tokens: int, num_new: Tensor | None) -> None:
        """Note that `num_tokens` columns were read, of which `num_new` [batch] were real (None: all)."""
        if self.lengths is not None:
            self.lengths = self.lengths + (num_tokens if num_new is None else num_new)
        elif num_new is not None:
            self.lengths = num_new + self.length
        self.length += num_tokens

    def count_images(self, mask: Tensor, valid: Tensor | None, grid: tuple[int, int]) -> None:
        """Note which of the columns just read are image tokens [batch, tokens], and which are real (None: all)."""
        self.image_grid = grid
        number = (mask if valid is None else mask & valid).sum(dim=1)
        self.image_tokens = number if self.image_tokens is None else self.image_tokens + number


def cache_bytes(nodes: Sequence[LayerNode], batch: int, max_len: int, dtype: torch.dtype) -> int:
    """Bytes that `new_cache` allocates for the same arguments."""
    entries = [entry for node in nodes if node.scope == "text" for entry in node.declaration.cache]
    return batch * sum(
        entry.elements_per_token * entry.bound.num_kept(max_len) * entry_dtype(entry, dtype).itemsize
        for entry in entries
    )


def _require_room(
    nodes: Sequence[LayerNode], batch: int, max_len: int, dtype: torch.dtype, device: torch.device
) -> None:
    needed = cache_bytes(nodes, batch, max_len, dtype)
    free = None if device.type == "meta" else free_bytes(str(device))
    if free is not None and needed > free:
        raise UserError(
            f"caches of {batch} x {max_len:,} tokens need {gib(needed)} on {device}, where {gib(free)} are free",
            hint="fewer or shorter sequences",
        )


def new_cache(nodes: Sequence[LayerNode], batch: int, max_len: int, dtype: torch.dtype, device: torch.device) -> Cache:
    """Zeroed caches for every one of these layers that belongs to the text model and keeps something.

    Raises ValueError for sizes below 1 and for a text model whose attention is bidirectional, which cannot use
    a cache; UserError when memory is short.
    """
    if batch < 1 or max_len < 1:
        raise ValueError(f"batch and max_len must be at least 1, found {batch} and {max_len}")
    require_cacheable(nodes)
    _require_room(nodes, batch, max_len, dtype, device)
    layers = {}
    for node in nodes:
        if node.scope == "text" and (layer := allocate(node.declaration, batch, max_len, dtype, device)) is not None:
            layers[node.id] = layer
    return Cache(layers, batch, max_len)


def require_cacheable(nodes: Sequence[LayerNode]) -> None:
    """Raise ValueError for a layer of the text model that cannot continue from a cache."""
    for node in nodes:
        if node.scope == "text" and node.role == "attention" and not node.declaration.cache:
            raise ValueError(f"{node.id} sees later tokens, so nothing can be cached: run the model without a cache")
