"""The room of the token embedding."""

from l4spec.layers.base import LayerKind
from l4spec.layers.embedding.cost import declare
from l4spec.layers.embedding.spec import EmbeddingSpec

KIND = LayerKind(
    spec=EmbeddingSpec,
    declare=declare,
    module="l4spec.layers.embedding.module:Embedding",
    slot="embedding",
    parallel="l4spec.layers.embedding.parallel:VocabEmbedding",
    eager="l4spec.layers.embedding.ledger:EAGER",
)
