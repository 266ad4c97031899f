"""The batch of a training step where none is given."""

from math import log2

TOKENS_OF_A_STEP = 1 << 24
"""16M tokens, as Llama 3 405B was trained with for most of its run (arXiv:2407.21783, section 3.4.1)."""


def chosen_batch(context: int, num_devices: int) -> int:
    """Sequences of `context` tokens in a training step of at most about 16M tokens; at least one.

    A power of two times the odd part of `num_devices`, so that data-parallel degrees divide it.
    """
    odd = num_devices // (num_devices & -num_devices)
    sequences = TOKENS_OF_A_STEP / context / odd
    return odd * (1 << int(log2(sequences))) if sequences >= 1 else max(1, min(odd, TOKENS_OF_A_STEP // context))
