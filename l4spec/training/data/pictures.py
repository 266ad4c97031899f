"""Made-up pictures, drawn: a shape in a cell of a 3 x 3 grid, moved a little, on a gray ground with noise."""

import torch
from torch import Tensor

from l4spec.spec.recipe.pictures import COLUMNS, ROWS, SHAPES, Scene

_COLORS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.8, 0.1),
    "blue": (0.1, 0.2, 0.9),
    "yellow": (0.9, 0.9, 0.1),
    "purple": (0.7, 0.1, 0.8),
    "white": (0.95, 0.95, 0.95),
}
_COLOR_VALUES = tuple(_COLORS.values())
_RADIUS = 0.15
"""Half the width of a shape, as a share of the tile."""
_MOVED = 0.03
"""Most that a shape is moved from the middle of its cell, as a share of the tile."""
_GROUND, _NOISE = 0.5, 0.05


def blank(size: int, channels: int) -> Tensor:
    """A tile [channels, size, size] that shows nothing: the ground alone, scaled as `draw_picture` scales."""
    return torch.full((channels, size, size), 2 * _GROUND - 1)


def draw_picture(scene: Scene, size: int, channels: int) -> Tensor:
    """The tile [channels, size, size] of a scene, values about -1 to 1; a function of the scene alone.

    A tile of another number of channels than 3 repeats or leaves out some.
    """
    random = torch.Generator().manual_seed(scene.noise)
    moved = (torch.rand(2, generator=random) * 2 - 1) * _MOVED
    noise = torch.randn(3, size, size, generator=random) * _NOISE
    place = (torch.arange(size) + 0.5) / size
    y = place[:, None] - (scene.row + 0.5) / len(ROWS) - float(moved[0])
    x = place[None, :] - (scene.column + 0.5) / len(COLUMNS) - float(moved[1])
    inside = _inside(SHAPES[scene.shape], x, y, _RADIUS)
    color = torch.tensor(_COLOR_VALUES[scene.color])[:, None, None]
    tile = torch.where(inside, color, torch.tensor(_GROUND)) + noise
    return (2 * tile - 1)[torch.arange(channels) % 3]


def _inside(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Mask of the points [size, size], at (x, y) from its centre, that a shape covers."""
    far = torch.maximum(x.abs(), y.abs())
    round_ = (x**2 + y**2).sqrt()
    match shape:
        case "square":
            return far <= radius
        case "circle":
            return round_ <= radius
        case "cross":
            return (far <= radius) & (torch.minimum(x.abs(), y.abs()) <= radius / 3)
    return (round_ <= radius) & (round_ >= 0.55 * radius)
