"""Memory of large gradients, kept from step to step on a CPU.

A tensor of tens of MiB goes back to the system when it is freed, which clears the pages of the next one before they can
be written: a quarter of a step of many experts (docs/speed.md). CUDA's allocator keeps memory by itself.
"""

import mmap
import sys
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

SMALLEST = 1 << 20
"""Bytes from which memory is kept: the C library keeps that of smaller tensors."""


class _Pages:
    """Private memory by its bytes, a power of two: what no tensor uses, while somebody keeps it.

    So tensors of other sizes in each step share some. Pages that were never written take no memory.
    """

    def __init__(self) -> None:
        self.unused: defaultdict[int, list[mmap.mmap]] = defaultdict(list)
        self.num_keepers = 0

    def take(self, num_bytes: int) -> memoryview:
        """At least so many bytes, which come back when the view and every tensor on it are gone."""
        size = 1 << (num_bytes - 1).bit_length()
        unused = self.unused[size]
        pages = unused.pop() if unused else mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        view = memoryview(pages)
        weakref.finalize(view, self._come_back, pages).atexit = False
        return view

    def _come_back(self, pages: mmap.mmap) -> None:
        if self.num_keepers:
            self.unused[len(pages)].append(pages)


_PAGES = _Pages()


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let `empty_kept` reuse memory until the end, when what no tensor uses goes back to the system."""
    _PAGES.num_keepers += 1
    try:
        yield
    finally:
        _PAGES.num_keepers -= 1
        if not _PAGES.num_keepers:
            _PAGES.unused.clear()


def empty_kept(like: Tensor, *shape: int) -> Tensor:
    """An uninitialized tensor of a shape, in the format and on the device of `like`.

    Within `kept_memory` a large one on a CPU has the memory of an earlier one of about the size that is gone, if any;
    otherwise, and on systems other than Linux, it is torch's own.
    """
    num_bytes = prod(shape) * like.element_size()
    if sys.platform != "linux" or not (_PAGES.num_keepers and like.is_cpu and num_bytes >= SMALLEST):
        return like.new_empty(shape)
    return torch.frombuffer(_PAGES.take(num_bytes), dtype=like.dtype, count=prod(shape)).view(shape)
