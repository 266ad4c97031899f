"""Schema of learned absolute position embeddings."""

from typing import Literal

from l4spec.layers.base import LayerSpec, Size


class LearnedPositionSpec(LayerSpec):
    """A learned vector per position, added to the stream before the first layer (GPT-2, vision transformers)."""

    kind: Literal["learned_position"]
    num_positions: Size
    """Rows of the table; longer sequences are refused."""
