"""Boxes in tensors."""

from torch import Tensor

from l4spec.runtime.checkpoints.layout import Region


def part(tensor: Tensor, region: Region) -> Tensor:
    """The view of `tensor` inside a box; the tensor itself for an empty one."""
    for dim, start, stop in region:
        tensor = tensor.narrow(dim, start, stop - start)
    return tensor
