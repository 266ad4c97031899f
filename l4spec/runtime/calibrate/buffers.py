"""Preallocated memory for all calibration measurements: inputs are views, so no measurement allocates its own."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from l4spec.layers.common.modules import linear
from l4spec.runtime.calibrate.sizes import Sizes
from l4spec.units import MiB, ceil_div

_TOUCHED_BYTES = 8 * MiB
"""A larger input would not stay in the caches anyway."""
_STREAMED_WIDTH = 1024


@dataclass(slots=True)
class Buffers:
    """Two buffers of random numbers of one dtype; `first` is larger than the CPU's caches.

    `place` is the element of `first` from which the next weights are streamed.
    """

    sizes: Sizes
    dtype: torch.dtype
    place: int = 0
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)

    def __post_init__(self) -> None:
        item, most = self.dtype.itemsize, max(self.sizes.stream[0])
        self.first = _random(max(self.sizes.cold_bytes // item, most, max(self.sizes.residency) // item), self.dtype)
        self.second = _random(most, self.dtype)

    def take(self, *shape: int) -> Tensor:
        """A tensor of this shape: always the same part of the first buffer."""
        return _part(self.first, shape, 0)

    def beside(self, *shape: int) -> Tensor:
        """A tensor of this shape in the second buffer."""
        return _part(self.second, shape, 0)

    def pieces(self, *shape: int, num_bytes: int | None = None) -> list[Tensor]:
        """Disjoint tensors of this shape in the first buffer, together `num_bytes`, by default those read cold."""
        least_bytes = self.sizes.cold_bytes if num_bytes is None else num_bytes
        count = max(1, min(least_bytes // self.dtype.itemsize, self.first.numel()) // prod(shape))
        return [_part(self.first, shape, number * prod(shape)) for number in range(count)]

    def after_weights(self, *inputs: Tensor) -> Callable[[], None]:
        """A preparation for timing small operations as in a model: weights stream through the caches, `inputs` follow.

        Streaming evicts the operators' code, too; reloading it is most of the time of a small operation.
        """
        vector = self.beside(1, _STREAMED_WIDTH)
        touched = [(x.data_ptr(), x.numel() * x.element_size()) for x in inputs]

        def prepare() -> None:
            linear(vector, self._next_weights())
            for address, num_bytes in touched:
                if num_bytes <= _TOUCHED_BYTES:
                    ctypes.string_at(address, num_bytes)

        return prepare

    def _next_weights(self) -> Tensor:
        """The next part of the first buffer [n, width], enough bytes to evict everything else from the caches."""
        count = self.sizes.evicting_bytes // self.dtype.itemsize // _STREAMED_WIDTH * _STREAMED_WIDTH
        start = self.place if self.place + count <= self.first.numel() else 0
        self.place = start + count
        return self.first[start : start + count].view(-1, _STREAMED_WIDTH)


def _random(count: int, dtype: torch.dtype) -> Tensor:
    """Numbers around 1 in size, repeated: making them costs less than measuring."""
    some = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    return some.repeat(ceil_div(count, some.numel()))[:count]


def _part(buffer: Tensor, shape: tuple[int, ...], start: int) -> Tensor:
    count = prod(shape)
    if start + count > buffer.numel():
        return _random(count, buffer.dtype).view(shape)
    return buffer[start : start + count].view(shape)
