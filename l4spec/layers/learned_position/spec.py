"""Schema of learned absolute position embeddings."""

from math import isqrt
from typing import Literal, Self

from pydantic import model_validator

from l4spec.layers.base import LayerSpec, Size


class LearnedPositionSpec(LayerSpec):
    """A learned vector per position, added to the stream before the first layer (GPT-2, vision transformers)."""

    kind: Literal["learned_position"]
    num_positions: Size
    """Rows of the table; longer sequences are refused."""
    interpolated: bool = False
    """The rows are a square grid, which is laid over a larger or smaller image: bilinear, corners on corners."""

    @model_validator(mode="after")
    def _is_square(self) -> Self:
        if self.interpolated and isqrt(self.num_positions) ** 2 != self.num_positions:
            raise ValueError(f"a grid that is interpolated is square, found {self.num_positions} positions")
        return self
