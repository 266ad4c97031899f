"""What autograd keeps of a forward pass for its backward pass, counted where it is kept."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kept_bytes(run: Callable[..., Tensor], *inputs: Tensor, besides: Iterable[Tensor] = ()) -> int:
    """Bytes of the storages that autograd keeps of `run(*inputs)`, those of `besides` left out."""
    kept: dict[int, int] = {}
    alive = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(*inputs)
    return sum(kept.values()) - sum(kept.get(x.untyped_storage().data_ptr(), 0) for x in besides)
