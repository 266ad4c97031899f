"""Image tiling as in Llama 4: grid of tiles and number of tokens (huggingface/transformers `llama4`)."""

from fractions import Fraction
from typing import NamedTuple


class TileGrid(NamedTuple):
    """Tiles of an image: rows and columns."""

    rows: int
    columns: int

    @property
    def num_tiles(self) -> int:
        """Tiles without the one of the whole image."""
        return self.rows * self.columns


def grids(max_tiles: int) -> tuple[TileGrid, ...]:
    """Every grid of at most `max_tiles` tiles."""
    return tuple(
        TileGrid(rows, columns) for rows in range(1, max_tiles + 1) for columns in range(1, max_tiles // rows + 1)
    )


def grid_for(height: int, width: int, tile: int, max_tiles: int) -> TileGrid:
    """The grid of `tile` x `tile` pixels that an image of `height` x `width` pixels is cut by.

    Of those that hold it without shrinking, the one that would enlarge it the least; if there is none, the one that
    shrinks it the least. Of equals the smallest.
    """
    scales = {grid: _scale(grid, height, width, tile) for grid in grids(max_tiles)}
    enlarging = [scale for scale in scales.values() if scale >= 1]
    best = min(enlarging) if enlarging else max(scales.values())
    return min((grid for grid, scale in scales.items() if scale == best), key=lambda grid: grid.num_tiles)


def _scale(grid: TileGrid, height: int, width: int, tile: int) -> Fraction:
    return min(Fraction(grid.rows * tile, height), Fraction(grid.columns * tile, width))


def seen_tiles(num_tiles: int, *, global_tile: bool) -> int:
    """Tiles that the tower sees of an image cut into `num_tiles`: one more for the whole of one that is cut."""
    return num_tiles + (1 if global_tile and num_tiles > 1 else 0)


def image_tokens(num_tiles: int, tokens_per_tile: int, *, global_tile: bool) -> int:
    """Tokens of an image cut into `num_tiles`: its patches, a separator after each tile of several, and three marks.

    The marks are image start, image end and `<|image|>`; with Llama 4's 144 tokens per tile: 147 for one tile, 437 for
    two, 2,467 for 16.
    """
    separators = num_tiles if num_tiles > 1 else 0
    return seen_tiles(num_tiles, global_tile=global_tile) * tokens_per_tile + separators + 3


__all__ = ["TileGrid", "grid_for", "grids", "image_tokens", "seen_tiles"]
