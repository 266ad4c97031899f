"""Descriptions of made-up pictures: shape, place, and caption. Imports no torch; `l4spec.training` draws them."""

import random
from dataclasses import dataclass
from itertools import product

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("square", "circle", "cross", "ring")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
_LISTS = (COLORS, SHAPES, ROWS, COLUMNS)
NUM_MARKS = 3
"""Tokens of an image of one tile beside its patches: its start, `<|image|>`, its end."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One shape on a gray ground, by indices into the lists above; `noise` seeds variations that the caption omits."""

    color: int
    shape: int
    row: int
    column: int
    noise: int = 0

    @property
    def caption(self) -> str:
        """As `red ring, top left`: no word of it follows from those before it."""
        return f"{COLORS[self.color]} {SHAPES[self.shape]}, {ROWS[self.row]} {COLUMNS[self.column]}"


def all_scenes() -> list[Scene]:
    """Every combination of words once: 216."""
    return [Scene(*numbers) for numbers in product(*(range(len(words)) for words in _LISTS))]


def scene(draw: random.Random) -> Scene:
    """One of them, all alike, with noise of its own."""
    color, shape, row, column = (draw.randrange(len(words)) for words in _LISTS)
    return Scene(color, shape, row, column, noise=draw.getrandbits(32))


def mean_caption_bytes() -> float:
    """Bytes of a caption on average."""
    scenes = all_scenes()
    return sum(len(one.caption) for one in scenes) / len(scenes)
