"""The room of patch embedding."""

from l4spec.layers.base import LayerKind
from l4spec.layers.patch_embedding.cost import declare
from l4spec.layers.patch_embedding.spec import PatchEmbeddingSpec

KIND = LayerKind(
    spec=PatchEmbeddingSpec,
    declare=declare,
    module="l4spec.layers.patch_embedding.module:PatchEmbedding",
    slot="vision",
    eager="l4spec.layers.patch_embedding.ledger:EAGER",
)
