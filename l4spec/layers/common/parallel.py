"""Parallelism inside layers: the mesh axes that a layer sees, and differentiable collectives.

Tensor parallelism as Megatron's pair of operators (arXiv:1909.08053, section 3): `enter` is the identity whose gradient
is summed over ranks, `leave` sums over ranks and lets the gradient pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the mesh (or several as one): this rank's `index` among `size`, and the group of those ranks.

    Without a group (a rank that is built alone) nothing can be sent; an axis of one rank never sends.
    """

    size: int = 1
    index: int = 0
    group: ProcessGroup | None = None


@dataclass(frozen=True, slots=True)
class Ranks:
    """The mesh axes of a layer. `data` are all ranks with other sequences: dp and ep as one axis.

    The ranks along `cp` have other tokens of the same sequences.
    """

    tp: Axis = Axis()
    ep: Axis = Axis()
    data: Axis = Axis()
    cp: Axis = Axis()


Cuts = Mapping[str, tuple[range, ...]]
"""Runs of each logical axis by rank of its mesh axis, in order of ranks; an uncut axis has one run."""

_Move = Callable[[Tensor, Axis], Tensor]


def enter(x: Tensor, axis: Axis) -> Tensor:
    """`x` as it is, on every rank; its gradient is the sum over ranks."""
    return x if axis.size == 1 else _applied(_Enter, x, axis)


def leave(x: Tensor, axis: Axis) -> Tensor:
    """The sum of `x` over ranks; its gradient passes as it is."""
    return x if axis.size == 1 else _applied(_Leave, x, axis)


def gather_tokens(x: Tensor, axis: Axis) -> Tensor:
    """All ranks' tokens of `x` [batch, tokens, ...] in order of ranks; the gradient is this rank's part of the sum."""
    return x if axis.size == 1 else _applied(_Moved, x, axis, tokens_of_ranks, _sums_of_own)


def scatter_sums(x: Tensor, axis: Axis) -> Tensor:
    """This rank's tokens of the sum of `x` [batch, tokens, ...] over ranks; the gradient is that of all tokens."""
    return x if axis.size == 1 else _applied(_Moved, x, axis, _sums_of_own, tokens_of_ranks)


def all_tokens(x: Tensor, axis: Axis) -> Tensor:
    """As `gather_tokens`, for consumers that do the same on every rank: the gradient is this rank's part as it is."""
    return x if axis.size == 1 else _applied(_Moved, x, axis, tokens_of_ranks, _slice_of)


def own_tokens(x: Tensor, axis: Axis) -> Tensor:
    """This rank's tokens of `x`, which is the same on every rank; the gradient is that of all tokens."""
    return x if axis.size == 1 else _applied(_Moved, x, axis, _slice_of, tokens_of_ranks)


def gather_last(x: Tensor, axis: Axis, sizes: Sequence[int]) -> Tensor:
    """Every rank's `x` beside each other along the last dimension, `sizes` wide; the gradient is this rank's slice.

    For consumers that do the same on every rank, so that no gradients need to be added.
    """
    return x if axis.size == 1 else _applied(_GatherLast, x, axis, tuple(sizes))


def exchange(rows: Tensor, axis: Axis, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    """All-to-all: the first `sent[0]` rows go to rank 0 and so on; rows come in order of the ranks they are from."""
    return rows if axis.size == 1 else _applied(_Exchange, rows, axis, tuple(sent), tuple(received))


def sum_over(x: Tensor, axis: Axis, op: str = "sum") -> Tensor:
    """The sum (or `max`) of `x` over ranks, without gradients."""
    if axis.size == 1:
        return x
    return _done(funcol.all_reduce(x.contiguous(), op, group_of(axis)))


def gather(x: Tensor, axis: Axis) -> Tensor:
    """Every rank's `x`, of one shape, as [ranks, ...], without gradients."""
    if axis.size == 1:
        return x[None]
    ops = torch.ops._c10d_functional  # funcol's own name for it differs between versions
    return _done(ops.all_gather_into_tensor(x.contiguous()[None], axis.size, group_of(axis).group_name))


def tokens_of_ranks(x: Tensor, axis: Axis) -> Tensor:
    """All ranks' tokens of `x` [batch, tokens, ...] in order of ranks, without gradients."""
    return gather(x, axis).transpose(0, 1).flatten(1, 2)


def _sums_of_own(x: Tensor, axis: Axis) -> Tensor:
    """This rank's tokens of the sum of `x` over ranks, without gradients."""
    by_rank = x.unflatten(1, (axis.size, -1)).transpose(0, 1).contiguous()  # type: ignore[no-untyped-call]
    ops = torch.ops._c10d_functional
    return _done(ops.reduce_scatter_tensor(by_rank, "sum", axis.size, group_of(axis).group_name))[0]


def _slice_of(x: Tensor, axis: Axis) -> Tensor:
    return x.chunk(axis.size, dim=1)[axis.index].contiguous()


def pass_on(sent: Tensor, received: Tensor, axis: Axis) -> Callable[[], None]:
    """Start to send to the next rank and to receive `received` from the previous one; empty tensors are not sent.

    Returns a function that waits for both; until then neither tensor may change. Without gradients.
    """
    group = group_of(axis)
    moves = [(dist.isend, sent, axis.index + 1), (dist.irecv, received, axis.index - 1)]
    operations = [dist.P2POp(move, x, group=group, group_peer=peer) for move, x, peer in moves if x.numel()]
    works = dist.batch_isend_irecv(operations) if operations else []

    def wait() -> None:
        for work in works:
            work.wait()

    return wait


def group_of(axis: Axis) -> ProcessGroup:
    """The group of an axis; RuntimeError where the rank was built alone."""
    if axis.group is None:
        raise RuntimeError("this rank was built alone, so nothing can be sent to the others")
    return axis.group


def _done(result: Tensor) -> Tensor:
    waited: Tensor = funcol.wait_tensor(result)  # type: ignore[no-untyped-call]
    return waited


def _applied(function: Any, *args: object) -> Tensor:
    result: Tensor = function.apply(*args)
    return result


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return sum_over(grad, ctx.axis), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return sum_over(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Moved(torch.autograd.Function):
    """Tokens by one collective forward, and their gradients by another one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, there: _Move, back: _Move) -> Tensor:
        ctx.axis, ctx.back = axis, back
        return there(x, axis)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(grad, ctx.axis), None, None, None


class _GatherLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, sizes: tuple[int, ...]) -> Tensor:
        ctx.axis, ctx.sizes = axis, sizes
        widest = max(sizes)  # a group gathers tensors of one shape
        padded = torch.nn.functional.pad(x, (0, widest - x.shape[-1]))
        parts = gather(padded, axis)
        return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        own: Tensor = torch.split(grad, ctx.sizes, dim=-1)[ctx.axis.index]
        return own.contiguous(), None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, axis: Axis, sent: tuple[int, ...], received: tuple[int, ...]) -> Tensor:
        ctx.axis, ctx.sent, ctx.received = axis, sent, received
        return _all_to_all(rows, axis, sent, received)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grad, ctx.axis, ctx.received, ctx.sent), None, None, None


def _all_to_all(rows: Tensor, axis: Axis, sent: tuple[int, ...], received: tuple[int, ...]) -> Tensor:
    return _done(funcol.all_to_all_single(rows.contiguous(), list(received), list(sent), group_of(axis)))
