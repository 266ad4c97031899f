"""Schema of early fusion: image tokens take the places reserved for them in the text."""

from typing import Literal

from l4spec.layers.base import Count, LayerSpec, Size


class MergeSpec(LayerSpec):
    """Early fusion: the vectors at image placeholder tokens are replaced by the projected patches, in order."""

    kind: Literal["merge"]
    num_vectors: Size = 1
    """Vectors side by side that an image token brings: one for the embeddings, then one for each block it enters."""
    index: Count = 0
    """Index of the merged vector; those after the first are added to the text's own (DeepStack, arXiv:2406.04334)."""
