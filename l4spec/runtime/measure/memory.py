"""Measured memory of a run beyond that allocated before it: peak, and remainder at the end."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(slots=True)
class PeakMemory:
    """Bytes of tensors made since the measurement began: alive now, and at the most."""

    live_bytes: int = 0
    peak_bytes: int = 0

    def take(self, num_bytes: int) -> None:
        """A tensor was made."""
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def free(self, num_bytes: int) -> None:
        """Nobody holds the tensor any more."""
        self.live_bytes -= num_bytes


class _Storages(TorchDispatchMode):
    """Follows every storage from the operator that makes it to its end; storages that came as inputs are old."""

    def __init__(self, memory: PeakMemory) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memory = memory
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.known.add(leaf.untyped_storage())
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._meet(leaf.untyped_storage())
        return result

    def _meet(self, storage: torch.UntypedStorage) -> None:
        if storage not in self.known:
            self.known.add(storage)
            self.memory.take(storage.nbytes())
            weakref.finalize(storage, self.memory.free, storage.nbytes())


@contextmanager
def tracking_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Memory of the block's run on `device`, complete when the block has ended.

    On the CPU every tensor is tracked by its storage, to the byte; buffers inside operators are not seen. On CUDA it is
    the allocator's own statistics, which see that too and round every tensor up to 512 bytes.
    """
    memory = PeakMemory()
    if device.type != "cuda":
        with _Storages(memory):
            yield memory
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield memory
    torch.cuda.synchronize(device)
    memory.live_bytes = torch.cuda.memory_allocated(device) - before
    memory.peak_bytes = torch.cuda.max_memory_allocated(device) - before
