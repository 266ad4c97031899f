"""Schema of early fusion: image tokens take the places reserved for them in the text."""

from typing import Literal

from l4spec.layers.base import LayerSpec


class MergeSpec(LayerSpec):
    """Early fusion: the vectors at image placeholder tokens are replaced by the projected patches, in order."""

    kind: Literal["merge"]
