"""Schema of the residual addition."""

from typing import Literal

from l4spec.layers.base import LayerSpec


class AddSpec(LayerSpec):
    """Sum of its inputs: the residual stream and the outputs of layers."""

    kind: Literal["add"]
    num_inputs: int = 2
    """Number of streams that are added."""
    scaled: bool = False
    """Multiply the sum by a stored number, which is not trained."""
