"""Many matrices, each for its own rows: the matmul of a mixture of experts, as one opaque operator.

One operator, so that `torch.compile` does not depend on the number of rows per expert, and so that a FLOP counter can
count it. On CUDA it is `grouped_mm`; elsewhere a loop over the experts that have rows, which is what the CPU's
`grouped_mm` is, without its limits (torch 2.13: no fp64, no fp32 gradient when an expert has no row).
"""

import torch
from torch import Tensor

from l4spec.layers.common.kept_memory import empty_kept

_GROUPED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """rows of `x` [rows, in] through the matrices `weight` [experts, out, in]: [rows, out].

    Expert e has the rows from offsets[e - 1] (0 for the first) to offsets[e]; `offsets` is int32 [experts] and ends at
    the number of rows. Differentiable in `x` and `weight`.
    """
    result: Tensor = _grouped_linear(x, weight, offsets)
    return result


@torch.library.custom_op("l4spec::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    if x.is_cuda and x.dtype in _GROUPED_DTYPES and _is_aligned(x, weight):
        return torch.nn.functional.grouped_mm(x, weight.transpose(1, 2), offs=offsets)
    result = x.new_empty(x.shape[0], weight.shape[1])
    for expert, start, stop in hit(offsets):
        torch.mm(x[start:stop], weight[expert].t(), out=result[start:stop])
    return result


@_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("l4spec::grouped_outer", mutates_args=())
def _grouped_outer(grad: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    """Per expert, grad^T x over its rows [experts, out, in]: the gradient of its matrix; zeros without rows."""
    result = empty_kept(x, offsets.shape[0], grad.shape[1], x.shape[1])
    start = 0
    for expert, stop in enumerate(offsets.tolist()):
        if stop > start:
            torch.mm(grad[start:stop].t(), x[start:stop], out=result[expert])
        else:
            result[expert].zero_()
        start = stop
    return result


@_grouped_outer.register_fake
def _(grad: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(offsets.shape[0], grad.shape[1], x.shape[1])


def _remember(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, offsets = ctx.saved_tensors  # type: ignore[attr-defined]  # torch's stub lacks it
    grad = grad.contiguous()
    needs_x, needs_weight, _ = ctx.needs_input_grad  # type: ignore[attr-defined]  # torch's stub lacks it
    grad_x = _grouped_linear(grad, weight.transpose(1, 2), offsets) if needs_x else None
    grad_weight = _grouped_outer(grad, x, offsets) if needs_weight else None
    return grad_x, grad_weight, None


_grouped_linear.register_autograd(_backward, setup_context=_remember)


def _is_aligned(x: Tensor, weight: Tensor) -> bool:
    """True if rows begin at multiples of 16 bytes, which CUDA's grouped kernels need."""
    return all(size * x.element_size() % 16 == 0 for size in (x.shape[1], weight.shape[1]))


def hit(offsets: Tensor) -> list[tuple[int, int, int]]:
    """(expert, first row, row after its last) of every expert that has rows."""
    stops = offsets.tolist()
    starts = [0, *stops[:-1]]
    return [(e, start, stop) for e, (start, stop) in enumerate(zip(starts, stops, strict=True)) if stop > start]
