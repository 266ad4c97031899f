"""Matmuls in fp8 with gradients: three products of a linear layer, each with both operands rounded, summed in fp32.

y = x W^T, contracted over inputs; dx = dy W, over outputs; dW = dy^T x, over rows. Scales are along the contracted dim
of each, so that x, W and dy are rounded twice. Operands are kept in the model's format and rounded again in the
backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from l4spec.layers.common.grouped_linear import hit
from l4spec.layers.common.kept_memory import empty_kept
from l4spec.layers.common.modules import wide
from l4spec.spec.recipe.precision import Fp8Spec
from l4spec.training.fp8.operands import FORMATS, Float8, Kind, Operand, operand

Place = Literal["input", "weight", "gradient"]
PLACES: tuple[Place, ...] = ("input", "weight", "gradient")
Record = Callable[[Place, Tensor, Operand], None]


@dataclass(frozen=True, slots=True)
class Fp8Products:
    """`Products` of one weight as a recipe declares them; `record` is shown every operand, `count` FLOPs."""

    fp8: Fp8Spec
    record: Record
    count: Callable[[int], None]

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """[..., in] by a weight [out, in] to [..., out], in the format of `x`."""
        result: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, self)  # type: ignore[no-untyped-call]
        return result.view(*x.shape[:-1], weight.shape[0])

    def grouped(self, x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
        """As `grouped_linear`: every expert's product has scales of its own."""
        result: Tensor = _Grouped.apply(x, weight, offsets, self)  # type: ignore[no-untyped-call]
        return result

    def product(self, first: tuple[Place, Tensor], second: tuple[Place, Tensor]) -> Tensor:
        """first [m, k] times second [n, k] transposed: [m, n] in fp32 (fp64 of fp64), from operands in fp8."""
        own, other = self._rounded(*first), self._rounded(*second)
        self.count(2 * own.shape[0] * own.shape[1] * other.shape[0])
        return own @ other.t()

    def _rounded(self, place: Place, x: Tensor) -> Tensor:
        given = wide(x)
        kind: Kind = "weight" if place == "weight" else "rows"
        rounded = operand(given, self._format(place), self.fp8.scaling, kind)
        self.record(place, given, rounded)
        return rounded.values(given.dtype)

    def _format(self, place: Place) -> Float8:
        return FORMATS[self.fp8.gradient_format if place == "gradient" else "e4m3"]

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """x W^T of rows [rows, in] and a weight [out, in]."""
        return self.product(("input", x), ("weight", weight)).to(x.dtype)

    def gradient_of_rows(self, grad: Tensor, weight: Tensor) -> Tensor:
        """dy W [rows, in]."""
        return self.product(("gradient", grad), ("weight", weight.t())).to(grad.dtype)

    def gradient_of_weight(self, grad: Tensor, x: Tensor) -> Tensor:
        """dy^T x [out, in]."""
        return self.product(("gradient", grad.t()), ("input", x.t())).to(x.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, products: Fp8Products) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.products = products
        return products.forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        products: Fp8Products = ctx.products
        needs_x, needs_weight, _ = ctx.needs_input_grad
        grad_x = products.gradient_of_rows(grad, weight) if needs_x else None
        return grad_x, products.gradient_of_weight(grad, x) if needs_weight else None, None


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offsets: Tensor, products: Fp8Products) -> Tensor:
        ctx.save_for_backward(x, weight, offsets)
        ctx.products = products
        result = x.new_empty(x.shape[0], weight.shape[1])
        for expert, start, stop in hit(offsets):
            result[start:stop] = products.forward(x[start:stop], weight[expert])
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, offsets = ctx.saved_tensors
        products: Fp8Products = ctx.products
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x) if needs_x else None
        grad_weight = empty_kept(weight, *weight.shape).zero_() if needs_weight else None
        for expert, start, stop in hit(offsets):
            if grad_x is not None:
                grad_x[start:stop] = products.gradient_of_rows(grad[start:stop], weight[expert])
            if grad_weight is not None:
                grad_weight[expert] = products.gradient_of_weight(grad[start:stop], x[start:stop])
        return grad_x, grad_weight, None, None
