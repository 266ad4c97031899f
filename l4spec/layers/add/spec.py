"""Schema of the residual addition."""

from typing import Literal

from l4spec.layers.base import LayerSpec


class AddSpec(LayerSpec):
    """Sum of its inputs: the residual stream and what layers add to it."""

    kind: Literal["add"]
    num_inputs: int = 2
    """How many streams are added."""
    scaled: bool = False
    """Whether the sum is multiplied by a stored number, which is not trained."""
