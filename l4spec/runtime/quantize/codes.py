"""From weights to codes and scales and back, as a packing law says; words are `l4spec.runtime.quantize.bit_packing`.

A code is the stored value of one weight, in a byte of its own here: whole numbers are stored from 0 upwards (symmetric:
2^(bits - 1) more than the number), floats as their bits. Scales are rounded up, so that the largest weight of a group
is at most half a step beyond the largest code and every weight is within half a step of its code's value.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from l4spec.spec.storage import ScaledLaw
from l4spec.units import ceil_div

SCALE_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "e8m0": torch.float8_e8m0fnu,
}
E4M3_MAX = 448.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The positive values of a 4-bit float by their codes; the fourth bit is the sign (OCP MX specification 1.0)."""


@dataclass(frozen=True, slots=True)
class Coded:
    """Matrices [..., rows, columns] under a law.

    `codes` are uint8 of the matrices' shape, `scale` is [..., groups of rows, groups of columns], as are
    `zero_point` (uint8, of asymmetric laws) and, with one entry a matrix [...], `matrix_scale`.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None = None
    matrix_scale: Tensor | None = None


def group_shape(law: ScaledLaw, num_rows: int, num_columns: int) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    if law.group == "tensor":
        return num_rows, num_columns
    if law.group == "row":
        return 1, num_columns
    return law.group if isinstance(law.group, tuple) else (1, law.group)


def largest_code(law: ScaledLaw) -> float:
    """Divisor of a group's largest magnitude; an integer may exceed its range by half a step."""
    largest: dict[str, float] = {"int": (2**law.bits - 1) / 2, "e4m3": E4M3_MAX, "e2m1": E2M1[-1]}
    return largest[law.values]


def encode(law: ScaledLaw, weight: Tensor) -> Coded:
    """Codes and scales of fp32 matrices [..., rows, columns]: round to nearest, scales from the extremes of a group."""
    shape = (int(weight.shape[-2]), int(weight.shape[-1]))
    group = group_shape(law, *shape)
    if law.zero_point_bits:
        return _encode_asymmetric(law, weight, group)
    magnitudes = _by_group(weight.abs(), group).amax(dim=(-3, -1))
    exact_scales = magnitudes / largest_code(law)
    matrix_scale = None
    if law.matrix_scale_dtype is not None:
        top = E4M3_MAX if law.scale_dtype == "fp8" else 1.0
        matrix_scale = rounded_up(exact_scales.amax(dim=(-2, -1)) / top, law.matrix_scale_dtype)
        exact_scales = exact_scales / matrix_scale.float()[..., None, None]
    scale = rounded_up(exact_scales, law.scale_dtype)
    step = spread(_product(scale, matrix_scale), group, shape)
    return Coded(_codes(law, weight / step), scale, None, matrix_scale)


def _encode_asymmetric(law: ScaledLaw, weight: Tensor, group: tuple[int, int]) -> Coded:
    """Codes from 0 to 2^bits - 1 around a zero point, so that 0 is exact."""
    shape = (int(weight.shape[-2]), int(weight.shape[-1]))
    grouped = _by_group(weight, group)
    low, high = grouped.amin(dim=(-3, -1)).clamp(max=0), grouped.amax(dim=(-3, -1)).clamp(min=0)
    scale = rounded_up((high - low) / (2**law.bits - 1), law.scale_dtype)
    zero_point = (-low / scale.float()).round().clamp(0, 2**law.bits - 1)
    codes = (weight / spread(scale.float(), group, shape)).round() + spread(zero_point, group, shape)
    return Coded(codes.clamp(0, 2**law.bits - 1).to(torch.uint8), scale, zero_point.to(torch.uint8))


def _codes(law: ScaledLaw, values: Tensor) -> Tensor:
    """uint8 codes of weights in units of their steps."""
    if law.values == "e4m3":
        return values.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    if law.values == "e2m1":
        middles = [(low + high) / 2 for low, high in pairwise(E2M1)]
        codes: Tensor = torch.bucketize(values.abs(), torch.tensor(middles, device=values.device)).to(torch.uint8)
        return torch.where(values < 0, codes + 8, codes)
    half = 1 << (law.bits - 1)
    return (values.round().clamp(-half, half - 1) + half).to(torch.uint8)


def decode(law: ScaledLaw, coded: Coded, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights from codes and scales, computed in `dtype`."""
    shape = (int(coded.codes.shape[-2]), int(coded.codes.shape[-1]))
    group = group_shape(law, *shape)
    if law.values == "e4m3":
        numbers = coded.codes.view(torch.float8_e4m3fn).to(dtype)
    elif law.values == "e2m1":
        table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=coded.codes.device, dtype=dtype)
        numbers = table[coded.codes.int()]
    else:
        zero = 2 ** (law.bits - 1) if coded.zero_point is None else spread(coded.zero_point.to(dtype), group, shape)
        numbers = coded.codes.to(dtype) - zero
    step = _product(coded.scale, coded.matrix_scale).to(dtype)
    return _scaled(numbers, step, group)


def _scaled(numbers: Tensor, step: Tensor, group: tuple[int, int]) -> Tensor:
    """Every number times its group's step; where groups are runs of a row, without a step for each number."""
    if group[0] == 1 and numbers.shape[-1] % group[1] == 0:
        by_group = numbers.view(*step.shape, group[1])
        return by_group.mul_(step[..., None]).view(numbers.shape)
    return numbers.mul_(spread(step, group, (int(numbers.shape[-2]), int(numbers.shape[-1]))))


def spread(by_group: Tensor, group: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """A value per group as one per weight."""
    rows = by_group.repeat_interleave(group[0], dim=-2)[..., : shape[0], :]
    return rows.repeat_interleave(group[1], dim=-1)[..., : shape[1]]


def _by_group(matrix: Tensor, group: tuple[int, int]) -> Tensor:
    """[..., rows, columns] as [..., groups, rows of one, groups, columns of one]; zeros beyond the edges."""
    high, wide = group
    rows, columns = matrix.shape[-2:]
    padded = torch.nn.functional.pad(matrix, (0, -columns % wide, 0, -rows % high))
    return padded.view(*matrix.shape[:-2], ceil_div(rows, high), high, ceil_div(columns, wide), wide)


def _product(scale: Tensor, matrix_scale: Tensor | None) -> Tensor:
    """The step of each group in fp32."""
    return scale.float() if matrix_scale is None else scale.float() * matrix_scale.float()[..., None, None]


def rounded_up(exact: Tensor, dtype: str) -> Tensor:
    """The least number of the format that is not below `exact`; 1 for 0, since a group of zeros may have any scale."""
    exact = torch.where(exact == 0, 1.0, exact)
    target = SCALE_DTYPES[dtype]
    if target == torch.float32:
        return exact
    if target == torch.float8_e8m0fnu:
        mantissa, exponent = torch.frexp(exact)
        power = torch.where(mantissa > 0.5, exponent, exponent - 1).clamp(-127, 127)
        return torch.ldexp(torch.ones_like(exact), power).to(target)
    if target == torch.float8_e4m3fn:
        exact = exact.clamp(max=E4M3_MAX)
    rounded = exact.to(target)
    bits = rounded.view(torch.int8 if target.itemsize == 1 else torch.int16)
    return torch.where(rounded.float() < exact, bits + 1, bits).view(target)
