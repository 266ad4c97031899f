"""Torch's products with packed weights: where they apply, their own layout of a payload, and the way back from it.

A kernel's layout of 4-bit codes replaces the canonical payload and takes as many bytes. It depends on the machine, so
that states and checkpoints are always written in the canonical one. The order in which a layout holds the codes is
learned from the packing operator itself, by packing the digits of each code's index.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from l4spec.runtime.quantize.bit_packing import unpack_nibbles
from l4spec.spec.storage import ScaledLaw

_aten = torch.ops.aten
GROUPS = (256, 128, 64, 32)
"""Weights that may share a scale, of both kernels (aten/src/ATen/native/LinearAlgebra.cpp)."""
_INNER_TILES = 8
"""Tiles of 16 inputs that a CUDA thread block takes at once; 8 is what the largest matrices run best with."""
INT8_INPUTS = 16
"""Inputs of which an int8 product takes a multiple: other sizes read past their rows (torch 2.13)."""


@dataclass(frozen=True, slots=True)
class Int4Kernel:
    """A product with 4-bit weights in groups: rows in blocks of `block_rows` are packed on their own.

    `pack` takes uint8 codes [rows, columns], `product` x [n, columns], the packed codes, the group size and, for every
    group, its scale and the value of code 8, [groups, rows, 2].
    """

    name: str
    block_rows: int
    pack: Callable[[Tensor], Tensor]
    product: Callable[[Tensor, Tensor, int, Tensor], Tensor]

    def unpack(self, packed: Tensor, num_rows: int, num_columns: int) -> Tensor:
        """The codes [rows, columns] of a packed matrix."""
        flat, codes = packed.contiguous().view(-1).view(torch.uint8), []
        for start in range(0, num_rows, self.block_rows):
            rows = min(self.block_rows, num_rows - start)
            order = _order(self, rows, num_columns, str(packed.device))
            block = flat[start * num_columns // 2 : (start + rows) * num_columns // 2]
            flat_codes = torch.empty(rows * num_columns, dtype=torch.uint8, device=packed.device)
            flat_codes[order] = unpack_nibbles(block, rows * num_columns)
            codes.append(flat_codes.view(rows, num_columns))
        result = torch.cat(codes)
        if not torch.equal(self.pack(result), packed):
            raise RuntimeError(f"the layout of {self.name} is not made of blocks of {self.block_rows} rows")
        return result


@lru_cache(maxsize=8)
def _order(kernel: Int4Kernel, num_rows: int, num_columns: int, device: str) -> Tensor:
    """For each code of a packed block, its place in the matrix."""
    index = torch.arange(num_rows * num_columns, device=device).view(num_rows, num_columns)
    order = torch.zeros(num_rows * num_columns, dtype=torch.long, device=device)
    for shift in range(0, (num_rows * num_columns - 1).bit_length(), 4):
        packed = kernel.pack((index >> shift & 15).to(torch.uint8))
        order += unpack_nibbles(packed.view(-1), num_rows * num_columns).long() << shift
    return order


def _pack_cpu(codes: Tensor) -> Tensor:
    packed: Tensor = _aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return packed


def _pack_cuda(codes: Tensor) -> Tensor:
    pairs = codes[:, ::2] << 4 | codes[:, 1::2]
    packed: Tensor = _aten._convert_weight_to_int4pack(pairs, _INNER_TILES)
    return packed


CPU = Int4Kernel("int4pack_for_cpu", 64, _pack_cpu, _aten._weight_int4pack_mm_for_cpu)
CUDA = Int4Kernel("int4pack", 8, _pack_cuda, _aten._weight_int4pack_mm)


def int4_kernel(law: ScaledLaw, num_rows: int, num_columns: int, device: torch.device) -> Int4Kernel | None:
    """The 4-bit kernel of a device for matrices of this shape; None if it takes no such groups or sizes."""
    is_int4 = law.values == "int" and law.bits == 4 and kernel_group(law, num_columns) is not None
    if not is_int4 or (num_columns * 4) % law.word_bits:
        return None
    if device.type == "cpu":
        return CPU if num_rows % 16 == 0 else None
    if device.type == "cuda":
        return CUDA if num_rows % 8 == 0 and num_columns % (16 * _INNER_TILES) == 0 else None
    return None


def kernel_group(law: ScaledLaw, num_columns: int) -> int | None:
    """The group size to run a law with: its own, or one that divides a row with a single scale; None for no such."""
    if law.group == "row":
        return next((size for size in GROUPS if num_columns % size == 0), None)
    return law.group if isinstance(law.group, int) and law.group in GROUPS and num_columns % law.group == 0 else None


def takes_int8(law: ScaledLaw, num_columns: int, device: torch.device) -> bool:
    """True if torch's int8 product runs this law: one scale per row, on the CPU."""
    is_int8 = law.values == "int" and law.bits == 8 and law.group == "row" and not law.zero_point_bits
    return is_int8 and device.type == "cpu" and num_columns % INT8_INPUTS == 0


def int8_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [n, columns] by int8 rows [rows, columns] with a scale each [rows]."""
    return torch._weight_int8pack_mm(x, weight, scale)
