"""Schema of a concatenation: the vectors of a token from several streams, side by side."""

from typing import Literal

from l4spec.layers.base import LayerSpec, Size


class ConcatSpec(LayerSpec):
    """Lays streams of one width side by side: what an image token brings to the embeddings and to the first blocks."""

    kind: Literal["concat"]
    num_inputs: Size
    """Number of streams that are concatenated."""
