"""Images in a prompt: their tokens, and the tiles whose vectors replace the patch tokens."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.layers.patch_merger.spec import PatchMergerSpec
from l4spec.runtime.images.tiles import CutImage, cut_image
from l4spec.runtime.model import Model
from l4spec.runtime.tokenizer import TextTokenizer
from l4spec.spec.model import VisionSpec
from l4spec.tiling import TileGrid

PATCH = "<|patch|>"
_START, _END, _IMAGE = "<|image_start|>", "<|image_end|>", "<|image|>"
_BESIDE, _BELOW = "<|tile_x_separator|>", "<|tile_y_separator|>"


class KnowsMarks(Protocol):
    """A tokenizer that knows the ids of special tokens."""

    def id_of(self, token: str, /) -> int | None:
        """The id of a special token by its spelling; None for one that it lacks."""
        ...


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """Token ids of all images, one after the other, their tiles [tiles, 3, size, size] and the id of a patch."""

    ids: tuple[int, ...]
    pixel_values: Tensor
    patch_id: int

    def shown_to(self, model: Model) -> Tensor:
        """The tiles on the model's device; the model learns which token they take the places of, if it does not know.

        Raises UserError where it knows another.
        """
        if model.image_token_id is None:
            model.image_token_id = self.patch_id
        if model.image_token_id != self.patch_id:
            message = f"the tokenizer's patch is token {self.patch_id}, the model's is {model.image_token_id}"
            raise UserError(message, hint="--tokenizer names another file")
        return self.pixel_values.to(model.device)


def image_prompt(images: list[Tensor], vision: VisionSpec, tokenizer: TextTokenizer) -> ImagePrompt:
    """Images [3, height, width] in uint8 as a model of this spec takes them. Raises UserError without the marks."""
    has_vector_per_patch = vision.tower.learned_positions and vision.tower.position_grid is None
    if isinstance(vision.adapter, PatchMergerSpec) and not has_vector_per_patch:
        message = "the model takes images of any sides, which l4spec does not cut yet"
        raise UserError(message, hint="in Python, give model.generate pixel_values of equal sides")
    if vision.num_channels != 3:
        raise UserError(f"the model takes images of {vision.num_channels} channels, and files have 3")
    cut = [cut_image(image, vision.image_size, vision.max_tiles, global_tile=vision.global_tile) for image in images]
    ids = [number for one in cut for number in _ids(one, vision, tokenizer)]
    return ImagePrompt(tuple(ids), torch.cat([one.tiles for one in cut]), _marks(tokenizer)[PATCH])


def _ids(cut: CutImage, vision: VisionSpec, tokenizer: TextTokenizer) -> list[int]:
    return image_ids(cut.grid, vision.num_tokens_per_tile, tokenizer, global_tile=vision.global_tile)


def image_ids(grid: TileGrid, tokens_per_tile: int, tokenizer: KnowsMarks, *, global_tile: bool) -> list[int]:
    """An image as Llama 4 writes it: start, tiles with a separator after each of several, the whole image, end."""
    marks = _marks(tokenizer)
    patches = [marks[PATCH]] * tokens_per_tile
    row = [*patches, *(number for _ in range(grid.columns - 1) for number in (marks[_BESIDE], *patches))]
    cut = [number for _ in range(grid.rows) for number in (*row, marks[_BELOW])] if grid.num_tiles > 1 else []
    whole = patches if global_tile or grid.num_tiles == 1 else []
    return [marks[_START], *cut, marks[_IMAGE], *whole, marks[_END]]


def _marks(tokenizer: KnowsMarks) -> dict[str, int]:
    given = {name: tokenizer.id_of(name) for name in (_START, _END, _IMAGE, _BESIDE, _BELOW, PATCH)}
    missing = [name for name, number in given.items() if number is None]
    if missing:
        raise UserError(f"this tokenizer knows no images as Llama 4 writes them: it lacks {', '.join(missing)}")
    return {name: number for name, number in given.items() if number is not None}


__all__ = ["PATCH", "ImagePrompt", "KnowsMarks", "image_ids", "image_prompt"]
