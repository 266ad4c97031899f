"""Cost of a token embedding: its table, and a gather without FLOPs."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import Declaration, Dim, Elementwise, Operation, Parameter, Work, tokens_of
from l4spec.layers.embedding.spec import EmbeddingSpec


def declare(spec: EmbeddingSpec, width: Width) -> Declaration:
    """A table [vocab, hidden]; looking rows up is a gather and costs no FLOPs."""
    table = Parameter(
        "weight", (Dim("vocab", spec.vocab_size), Dim("hidden", width.hidden_size)), "embedding", "embedding"
    )

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Elementwise("gather", work.num_tokens * width.hidden_size),)  # weight[token]

    stream = tokens_of(width.hidden_size)
    return Declaration((table,), operations, inputs=(("batch", "tokens"),), output=stream)
