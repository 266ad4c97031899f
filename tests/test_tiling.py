"""Tiles and tokens of an image: Llama 4's published counts, and laws of the chosen grid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec.tiling import TileGrid, grid_for, grids, image_tokens, seen_tiles

SIDES = st.integers(1, 6000)


@pytest.mark.parametrize(
    ("rows", "columns", "tokens"), [(1, 1, 147), (1, 2, 437), (2, 2, 727), (3, 5, 2322), (4, 4, 2467)]
)
def test_tokens_are_those_of_llama_4s_processor(rows: int, columns: int, tokens: int) -> None:
    assert image_tokens(TileGrid(rows, columns).num_tiles, 144, global_tile=True) == tokens


def test_only_an_image_that_is_cut_is_seen_whole_too() -> None:
    assert [seen_tiles(count, global_tile=True) for count in (1, 2, 16)] == [1, 3, 17]
    assert seen_tiles(16, global_tile=False) == 16
    assert image_tokens(2, 16, global_tile=False) == 2 * 16 + 2 + 3


def test_there_are_as_many_grids_as_pairs_of_factors() -> None:
    assert len(grids(16)) == sum(16 // rows for rows in range(1, 17)) == len(set(grids(16)))


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (336, 336, (1, 1)),
        (100, 50, (1, 1)),
        (337, 336, (1, 2)),
        (1280, 720, (3, 4)),
        (9000, 9000, (4, 4)),
        (9000, 10, (1, 16)),
    ],
)
def test_grids_of_sizes_worked_out_by_hand(width: int, height: int, grid: tuple[int, int]) -> None:
    assert grid_for(height, width, 336, 16) == TileGrid(*grid)


@given(SIDES, SIDES, st.integers(1, 20))
def test_a_grid_holds_the_image_if_any_does(height: int, width: int, most: int) -> None:
    chosen = grid_for(height, width, 336, most)
    assert 1 <= chosen.num_tiles <= most
    holds = [grid for grid in grids(most) if grid.rows * 336 >= height and grid.columns * 336 >= width]
    assert (chosen in holds) == bool(holds)
    assert chosen.num_tiles <= min((grid.num_tiles for grid in holds), default=most)


@given(SIDES, SIDES)
def test_a_turned_image_has_a_turned_grid(height: int, width: int) -> None:
    one, other = grid_for(height, width, 336, 16), grid_for(width, height, 336, 16)
    assert one.num_tiles == other.num_tiles
