"""Allocations of the module of the language-model head; it runs its product alone."""

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, no_pieces
from l4spec.layers.common.ledger import MOST_FEW_ROWS, WIDE, Ledger
from l4spec.layers.declaration import Work
from l4spec.layers.lm_head.spec import LMHeadSpec


def _allocate(spec: LMHeadSpec, width: Width, work: Work, ledger: Ledger) -> None:
    wide, narrow = (work.num_logit_rows * spec.vocab_size * size for size in (WIDE, ledger.item))
    copied = 0 if ledger.is_wide else narrow
    if work.num_logit_rows > 1 or spec.bias:  # put in order, or the bias added after
        ledger.touch(2 * narrow if _goes_apart(spec, work, ledger) else narrow)
    ledger.touch(copied + (3 * wide if spec.logit_softcap else wide))  # logits, logits / cap, tanh
    ledger.take(wide)


def _goes_apart(spec: LMHeadSpec, work: Work, ledger: Ledger) -> bool:
    """True if the product is split: for the last tokens of several sequences, or few rows in fp32."""
    lie_apart = spec.bias and work.num_sequences > 1 and work.num_logit_rows < work.num_tokens
    return lie_apart or (ledger.is_wide and work.num_logit_rows <= MOST_FEW_ROWS and spec.vocab_size % 2 == 0)


EAGER = EagerLayer(_allocate, no_pieces, code="lm_head")
