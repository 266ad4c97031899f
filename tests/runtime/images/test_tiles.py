"""Tiles equal those of transformers' Llama 4 image processor."""

import random
from typing import Any

import pytest
import torch

from l4spec.runtime.images import cut_image
from tests.runtime.images.processor import SAMPLES, declare_operators, llama4_processor, pattern

BYTE = 2 / 255
"""One step of a byte after scaling to [-1, 1]; interpolation on another CPU may round the other way."""
BF16 = 2.0**-8
"""Spacing of bfloat16 below 1, by half of which each of two roundings may be off."""


@pytest.mark.parametrize("sample", SAMPLES["images"], ids=lambda s: f"{s['width']}x{s['height']}")
def test_tiles_are_those_that_the_processor_made(sample: dict[str, Any]) -> None:
    cut = cut_image(pattern(sample["height"], sample["width"]), 336, 16, global_tile=True)
    assert [cut.grid.rows, cut.grid.columns] == sample["grid"]
    assert cut.tiles.shape == (sample["num_tiles"], 3, 336, 336)
    values = cut.tiles.flatten()[torch.tensor(sample["places"])].tolist()
    assert values == pytest.approx(sample["values"], abs=BYTE + BF16)
    close = sum(abs(a - b) <= 1e-6 for a, b in zip(values, sample["values"], strict=True))
    assert close >= 0.8 * len(values)
    assert float(cut.tiles.double().sum()) == pytest.approx(sample["sum"], abs=1e-3 * cut.tiles.numel())


def test_tiles_of_random_images_of_odd_sizes_equal_the_processors() -> None:
    declare_operators()
    processor = llama4_processor()
    draw = random.Random(4)
    sides = [4, 5, 13, 335, 337, 671, 673, *(draw.randint(4, 1500) for _ in range(24))]
    for _ in range(40):
        height, width = draw.choice(sides), draw.choice(sides)
        pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        theirs = processor(pixels, return_tensors="pt")
        ours = cut_image(pixels, 336, 16, global_tile=True)
        assert theirs["aspect_ratios"][0].tolist() == [ours.grid.rows, ours.grid.columns]
        assert (theirs["pixel_values"].float() - ours.tiles.float()).abs().max() <= 1e-6, (height, width)


def test_an_image_as_large_as_a_tile_is_only_scaled() -> None:
    pixels = pattern(336, 336)
    (tile,) = cut_image(pixels, 336, 16, global_tile=True).tiles
    assert (tile.float() - (pixels.float() / 127.5 - 1)).abs().max() <= 2 * BF16


def test_what_the_image_does_not_fill_is_black() -> None:
    tiles = cut_image(torch.full((3, 336, 500), 255, dtype=torch.uint8), 336, 16, global_tile=True).tiles
    assert tiles.shape[0] == 3
    assert bool((tiles[0] == 1).all())
    assert bool((tiles[1, :, :, : 500 - 336] == 1).all())
    assert bool((tiles[1, :, :, 500 - 336 :] == -1).all())


def test_no_tile_of_the_whole_where_the_model_has_none() -> None:
    with_whole = cut_image(pattern(28, 56), 28, 4, global_tile=True).tiles
    without = cut_image(pattern(28, 56), 28, 4, global_tile=False).tiles
    assert torch.equal(with_whole[:-1], without)
    assert without.shape[0] == 2


@pytest.mark.parametrize(
    "pixels", [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8), torch.zeros(3, 0, 4, dtype=torch.uint8)]
)
def test_other_tensors_are_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        cut_image(pixels, 336, 16, global_tile=True)
