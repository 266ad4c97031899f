"""Measured traffic: what a rank passes to collectives, counted where torch dispatches them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(slots=True)
class Sent:
    """All calls of one collective over one axis: how many, and the bytes of the buffers that were handed in.

    Of an all-gather, those that came out.
    """

    calls: int = 0
    payload_bytes: int = 0


Ledger = dict[tuple[str, str, torch.dtype], Sent]
"""By mesh axis, collective and number format."""


def _first(args: tuple[Any, ...]) -> Tensor:
    first = args[0]
    while not isinstance(first, Tensor):
        first = first[0]
    return first


def _second(args: tuple[Any, ...]) -> Tensor:
    return _first(args[1:])


_SEEN: dict[str, tuple[str, Callable[[tuple[Any, ...]], Tensor]]] = {
    "_c10d_functional::all_reduce": ("all-reduce", _first),
    "_c10d_functional::reduce_scatter_tensor": ("reduce-scatter", _first),
    "_c10d_functional::all_to_all_single": ("all-to-all", _first),
    "c10d::allreduce_": ("all-reduce", _first),
    "c10d::alltoall_base_": ("all-to-all", _second),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", _second),
    "c10d::_allgather_base_": ("all-gather", _first),
    "c10d::broadcast_": ("broadcast", _first),
    "c10d::send": ("send", _first),
}
"""Collective of each operator, and the position of the payload's buffer among its arguments."""
_GATHER = "_c10d_functional::all_gather_into_tensor"
_SEND_NOTHING = {
    "c10d::barrier",
    "c10d::monitored_barrier_",
    "c10d::recv_",
    "c10d::recv_any_source_",
    "_c10d_functional::wait_tensor",
    "_c10d_functional::_wrap_tensor_autograd",
}


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, axis_of: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.axis_of = axis_of
        self.ledger: Ledger = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == _GATHER:
            self._note("all-gather", result, args)
        elif name in _SEEN:
            collective, payload = _SEEN[name]
            self._note(collective, payload(args), args)
        elif name.startswith(("c10d::", "_c10d_functional::")) and name not in _SEND_NOTHING:
            raise AssertionError(f"a collective that nobody counts: {name}")
        return result

    def _note(self, collective: str, payload: Tensor, args: tuple[Any, ...]) -> None:
        axis = next((self.axis_of[name] for name in map(_group_name, args) if name in self.axis_of), "?")
        sent = self.ledger.setdefault((axis, collective, payload.dtype), Sent())
        sent.calls += 1
        sent.payload_bytes += payload.numel() * payload.element_size()


def _group_name(argument: Any) -> str | None:
    if isinstance(argument, str):
        return argument
    if isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type()):
        return str(ProcessGroup.unbox(argument).group_name)
    return None


@contextmanager
def counting_traffic(groups: dict[str, ProcessGroup]) -> Iterator[Ledger]:
    """Within the block, every collective over the named groups is noted in the ledger that is given."""
    counting = _Counting({str(group.group_name): axis for axis, group in groups.items()})
    with counting:
        yield counting.ledger
