"""Cost of the language-model head."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import Buffer, Declaration, Dim, Matmul, Operation, Parameter, Work, tokens_of
from l4spec.layers.lm_head.spec import LMHeadSpec

TIED_WEIGHT = "text.embedding.weight"


def declare(spec: LMHeadSpec, width: Width) -> Declaration:
    """A weight [vocab, hidden], or the embedding's when tied; logits are fp32, for `work.num_logit_rows` rows."""
    vocab, hidden = Dim("vocab", spec.vocab_size), Dim("hidden", width.hidden_size)
    tied_to = TIED_WEIGHT if spec.tied else None
    weight = Parameter("weight", (vocab, hidden), "head", "head", input_dim=1, tied_to=tied_to)
    bias = (Parameter("bias", (vocab,), "head", "bias"),) if spec.bias else ()

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Matmul("lm_head", work.num_logit_rows, weight),)  # x @ W.T

    def logits(work: Work) -> tuple[Buffer, ...]:
        return (Buffer("logits", work.num_logit_rows, (vocab,), bytes_per_element=4),)

    output = ("batch", "tokens", spec.vocab_size)
    return Declaration(
        (weight, *bias),
        operations,
        inputs=(tokens_of(width.hidden_size),),
        output=output,
        live=logits,
        saved=logits,
    )
