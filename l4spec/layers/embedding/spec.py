"""Schema of the token embedding."""

from typing import Literal

from l4spec.layers.base import LayerSize, LayerSpec, PositiveFloat


class EmbeddingSpec(LayerSpec):
    """Token embedding: one row of `hidden_size` per vocabulary entry."""

    kind: Literal["embedding"]
    vocab_size: LayerSize
    """Rows of the table."""
    scale: PositiveFloat | None = None
    """Factor on every embedding vector (Gemma: sqrt(hidden_size))."""
