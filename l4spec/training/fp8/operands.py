"""An operand of a matmul in fp8: scaled by the largest magnitude of a group, rounded to nearest, and back.

The formats are those of arXiv:2209.05433: e4m3 (3 bits of mantissa, up to 448) and e5m2 (2 bits, up to 57344). Of a
value x in a group of largest magnitude a, rounding changes at most |x| 2^-4 (e4m3; e5m2: 2^-3) or, where it falls below
the smallest normal number, half of the smallest subnormal one, a 2^-10 / 448 (a 2^-17 / 57344); twice that for scales
that are powers of two.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from l4spec.quantization.matmuls import BLOCK
from l4spec.runtime.quantize.codes import spread
from l4spec.spec.recipe.precision import Scaling
from l4spec.units import ceil_div

LEAST = 1e-12
"""Groups whose largest magnitude is below this are scaled as if it were this, so that scales stay finite."""
Kind = Literal["rows", "weight"]


@dataclass(frozen=True, slots=True)
class Float8:
    """A format; magnitudes above `most` round to no finite number of it."""

    dtype: torch.dtype

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return torch.finfo(self.dtype).max

    @property
    def most(self) -> float:
        """The largest number and half a step."""
        info = torch.finfo(self.dtype)
        return info.max * (1 + info.eps / (2 * _leading(info.max)))


def _leading(value: float) -> float:
    """The significand of `value`, from 1 to 2."""
    return float(torch.frexp(torch.tensor(value)).mantissa) * 2


FORMATS = {"e4m3": Float8(torch.float8_e4m3fn), "e5m2": Float8(torch.float8_e5m2)}


@dataclass(frozen=True, slots=True)
class Operand:
    """A matrix [rows, contracted] in fp8: `codes` times the scale of their group.

    `scale` has one element per group: of the matrix [], of each row [rows, 1], of each block [blocks, blocks] of `high`
    rows. `overflowed` counts elements beyond the format after scaling, or not finite to begin with; `flushed` those
    that became zero.
    """

    codes: Tensor
    scale: Tensor
    high: int
    overflowed: Tensor
    flushed: Tensor

    def values(self, dtype: torch.dtype) -> Tensor:
        """The numbers that the operand represents."""
        return self.codes.to(dtype) * _spread(self.scale.to(dtype), self.high, self.codes)


def operand(x: Tensor, form: Float8, scaling: Scaling, kind: Kind = "rows") -> Operand:
    """`x` [rows, contracted], in fp32 or fp64, in a format.

    With `blockwise`, `weight` has blocks of 128 x 128 and `rows` runs of 128 along the contracted dim. Values beyond
    the format saturate to its largest number, as in engines; values that are not finite become NaN, which stays
    visible.
    """
    high = BLOCK if kind == "weight" else 1
    scale = _scale(x, form, scaling, high)
    scaled = x if scaling == "unit" else x / _spread(scale, high, x)
    is_within = scaled.abs() <= form.most
    codes = torch.where(scaled.isfinite(), scaled.clamp(-form.largest, form.largest), float("nan")).to(form.dtype)
    flushed = ((x != 0) & (codes.to(x.dtype) == 0)).sum()
    return Operand(codes, scale, high, (~is_within).sum(), flushed)


def _scale(x: Tensor, form: Float8, scaling: Scaling, high: int) -> Tensor:
    """Scales: the factors from codes to values."""
    magnitudes = x.abs()
    match scaling:
        case "unit":
            return x.new_ones(())
        case "tensorwise":
            return magnitudes.amax().clamp(min=LEAST) / form.largest
        case "rowwise":
            return _power_of_two(magnitudes.amax(dim=-1, keepdim=True).clamp(min=LEAST) / form.largest)
        case "blockwise":
            return _of_blocks(magnitudes, high).clamp(min=LEAST) / form.largest


def _power_of_two(scale: Tensor) -> Tensor:
    """The least power of two that is not below a scale, so that nothing grows beyond the format."""
    mantissa, exponent = torch.frexp(scale)
    rounded = torch.ldexp(torch.ones_like(scale), torch.where(mantissa == 0.5, exponent - 1, exponent))
    return torch.where(scale.isfinite(), rounded, scale)


def _of_blocks(magnitudes: Tensor, high: int) -> Tensor:
    """The largest magnitude of each block of `high` x 128; those at the edges may be smaller."""
    rows, columns = magnitudes.shape
    padded = torch.nn.functional.pad(magnitudes, (0, -columns % BLOCK, 0, -rows % high))
    return padded.view(ceil_div(rows, high), high, ceil_div(columns, BLOCK), BLOCK).amax(dim=(1, 3))


def _spread(scale: Tensor, high: int, x: Tensor) -> Tensor:
    """Scales that broadcast to the shape of `x`: those of blocks are repeated, the others do already."""
    if scale.dim() < 2 or (scale.shape[1] == 1 and scale.shape[0] == x.shape[0]):
        return scale
    return spread(scale, (high, BLOCK), (int(x.shape[0]), int(x.shape[1])))
