"""What the language-model head costs."""

from l4spec.layers.base import Width
from l4spec.layers.common.ledger import MOST_FEW_ROWS, WIDE, Tally
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

    def held(work: Work, tally: Tally) -> None:
        wide, narrow = (work.num_logit_rows * spec.vocab_size * size for size in (WIDE, tally.item))
        copied = 0 if tally.is_wide else narrow
        if work.num_logit_rows > 1 or spec.bias:  # put in order, or the bias added behind
            tally.touch(2 * narrow if _goes_apart(spec, work, tally) else narrow)
        tally.touch(copied + (3 * wide if spec.logit_softcap else wide))  # logits, logits / cap, tanh
        tally.take(wide)

    output = ("batch", "tokens", spec.vocab_size)
    return Declaration(
        (weight, *bias),
        operations,
        inputs=(tokens_of(width.hidden_size),),
        output=output,
        live=logits,
        saved=logits,
        held=held,
    )


def _goes_apart(spec: LMHeadSpec, work: Work, tally: Tally) -> bool:
    """Whether the product is not made in one piece: the last tokens of several sequences, or few rows in fp32."""
    lie_apart = spec.bias and work.num_sequences > 1 and work.num_logit_rows < work.num_tokens
    return lie_apart or (tally.is_wide and work.num_logit_rows <= MOST_FEW_ROWS and spec.vocab_size % 2 == 0)
