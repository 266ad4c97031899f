"""Boxes in tensors."""

from torch import Tensor

from l4spec.runtime.checkpoints.layout import Region, TensorPiece


def stored_part(tensor: Tensor, piece: TensorPiece) -> Tensor:
    """The view of a stored tensor that is a piece of ours, turned as ours is."""
    box = part(tensor, piece.stored_region)
    box = box[..., :: piece.step] if piece.step > 1 else box
    return box.mT if piece.transposed else box


def part(tensor: Tensor, region: Region) -> Tensor:
    """The view of `tensor` inside a box; the tensor itself for an empty one."""
    for dim, start, stop in region:
        tensor = tensor.narrow(dim, start, stop - start)
    return tensor
