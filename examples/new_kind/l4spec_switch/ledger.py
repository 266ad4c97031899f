"""Allocations of the switch module without gradients; its time is predicted from its declaration."""

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer
from l4spec.layers.common.ledger import INDEX, WIDE, Ledger
from l4spec.layers.declaration import Work
from l4spec_switch.spec import SwitchSpec


def _allocate(spec: SwitchSpec, width: Width, work: Work, ledger: Ledger) -> None:
    """Router in fp32; rows sorted by expert, expert by expert, and back in the order of tokens."""
    tokens = work.num_tokens
    busiest = tokens if work.busiest_expert is None else work.busiest_expert
    rows, inner = (
        n * size * ledger.item for n, size in ((tokens, width.hidden_size), (busiest, spec.intermediate_size))
    )
    logits = tokens * spec.num_experts * WIDE
    widened = 0 if ledger.is_wide else (tokens + spec.num_experts) * width.hidden_size * WIDE
    ledger.touch(widened + logits)
    with ledger.holding(logits + tokens * (WIDE + INDEX)):  # probabilities, the likeliest, and which it is
        ledger.touch(logits)
        with ledger.holding(2 * tokens * INDEX):  # the order
            ledger.touch(rows + max(rows + 2 * inner, 2 * rows))  # sorted; an expert's inside, or results joined
            ledger.touch(3 * rows)  # joined, in the order of tokens, scaled
    ledger.take(rows)


EAGER = EagerLayer(_allocate, None, code="switch")
