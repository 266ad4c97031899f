"""Images and stills of clips from files to the tiles and tokens that a model takes."""

from l4spec.runtime.images.prompt import ImagePrompt, image_ids, image_prompt
from l4spec.runtime.images.read import read_all, read_image, read_stills
from l4spec.runtime.images.tiles import CutImage, cut_image

__all__ = ["CutImage", "ImagePrompt", "cut_image", "image_ids", "image_prompt", "read_all", "read_image", "read_stills"]
