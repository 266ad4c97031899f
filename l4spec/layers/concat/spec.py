"""Schema of a concatenation: the vectors of a token from several streams, side by side."""

from typing import Literal

from l4spec.layers.base import LayerSpec, Size


class ConcatSpec(LayerSpec):
    """Concatenates streams of one width: the vectors of an image token for the embeddings and for the first blocks."""

    kind: Literal["concat"]
    num_inputs: Size
    """Number of streams that are concatenated."""
