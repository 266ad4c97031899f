"""Pixels to normalised tiles, equal to transformers' `Llama4ImageProcessor` with its defaults.

An image is shrunk (or enlarged up to one tile) without distortion by antialiased bilinear interpolation of bytes, laid
into the upper left of its grid on black, scaled to [-1, 1] in bfloat16 and cut row by row; an image of several tiles is
also shown as a whole in one more tile, distorted to a square.
"""

import platform
from dataclasses import dataclass
from math import floor

import torch
from torch import Tensor

from l4spec.tiling import TileGrid, grid_for

_MEAN = _DEVIATION = 0.5


@dataclass(frozen=True, slots=True)
class CutImage:
    """Tiles [tiles, 3, size, size] in bfloat16, row by row and the whole image last, and the grid they are from."""

    tiles: Tensor
    grid: TileGrid


def cut_image(pixels: Tensor, tile: int, max_tiles: int, *, global_tile: bool) -> CutImage:
    """An image [3, height, width] in uint8, cut as Llama 4 cuts it. Raises ValueError for another tensor."""
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[0] != 3 or not pixels.numel():
        raise ValueError(f"expected uint8 [3, height, width], found {pixels.dtype} {list(pixels.shape)}")
    height, width = int(pixels.shape[1]), int(pixels.shape[2])
    grid = grid_for(height, width, tile, max_tiles)
    fitted = _resized(pixels, *_fitted_size((height, width), grid, tile))
    canvas = torch.zeros(3, grid.rows * tile, grid.columns * tile, dtype=torch.uint8)
    canvas[:, : fitted.shape[1], : fitted.shape[2]] = fitted
    cut = canvas.view(3, grid.rows, tile, grid.columns, tile).permute(1, 3, 0, 2, 4).reshape(-1, 3, tile, tile)
    if global_tile and grid.num_tiles > 1:
        cut = torch.cat((cut, _resized(pixels, tile, tile)[None]))
    return CutImage(_normalized(cut), grid)


def _fitted_size(size: tuple[int, int], grid: TileGrid, tile: int) -> tuple[int, int]:
    """Height and width to which an image is scaled: as large as its grid allows, enlarged to one tile at the most.

    Where the grid is the limit, transformers computes in single precision; so does this, since rounding down a product
    that is off by its last bit is off by a row of pixels.
    """
    limits = [max(side, tile) for side in size]
    canvas = (grid.rows * tile, grid.columns * tile)
    single = [whole < limit for whole, limit in zip(canvas, limits, strict=True)]
    targets = [min(limit, whole) for whole, limit in zip(canvas, limits, strict=True)]
    scales = [
        _single(target / side) if is_single else target / side
        for target, side, is_single in zip(targets, size, single, strict=True)
    ]
    by_width = _less(scales[1], scales[0], single)
    scale, is_single = scales[1 if by_width else 0], single[1 if by_width else 0]
    other = 0 if by_width else 1
    product = _single(size[other] * scale) if is_single else size[other] * scale
    length = max(1, min(floor(product), targets[other]))
    return (length, targets[1]) if by_width else (targets[0], length)


def _single(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def _less(first: float, second: float, single: list[bool]) -> bool:
    """True if `first` < `second`, compared in single precision if one of them is of that precision."""
    return _single(first) < _single(second) if any(single) else first < second


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear interpolation; of bytes where torch has fast code for them, as torchvision does."""
    if tuple(pixels.shape[1:]) == (height, width):
        return pixels
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")
    given = pixels[None] if fast else pixels[None].float()
    resized = torch.nn.functional.interpolate(
        given, size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )[0]
    return resized if fast else resized.round_().clamp_(0, 255).to(torch.uint8)


def _normalized(tiles: Tensor) -> Tensor:
    """Bytes to [-1, 1] in bfloat16, rounded after every step."""
    scaled = tiles.to(torch.bfloat16) * (1 / 255)
    return scaled.sub(_MEAN).div_(_DEVIATION)


__all__ = ["CutImage", "cut_image"]
