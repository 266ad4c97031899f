"""Schema of a single linear layer, as the projector between vision and text."""

from typing import Literal

from l4spec.layers.base import LayerSize, LayerSpec


class LinearSpec(LayerSpec):
    """One linear layer from the stream's width to `output_size`."""

    kind: Literal["linear"]
    output_size: LayerSize
    """Width of the output."""
    bias: bool = False
    """Add a learned bias."""
