"""Allocations and timed pieces of the module of Kimi Delta Attention."""

from collections.abc import Iterator

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import WIDE, Ledger, rms_norm
from l4spec.layers.declaration import Work
from l4spec.layers.kda.spec import KDASpec
from l4spec.layers.recurrent.ledger import allocate_channel_delta_rule, allocate_convolution, recurrence_pieces


def _allocate(spec: KDASpec, width: Width, work: Work, ledger: Ledger) -> None:
    """Projections as one tensor and their convolution; the scan in fp32; the norm of each head, gate and output."""
    tokens, item, mixed = work.num_tokens, ledger.item, 3 * spec.heads_width
    channels, narrow = tokens * spec.heads_width, tokens * spec.head_dim * item
    projected, out = tokens * mixed * item, tokens * width.hidden_size * item
    state = work.num_sequences * spec.num_heads * spec.head_dim**2 * WIDE
    before = work.num_sequences * (spec.conv_kernel_size - 1) * mixed * item
    ledger.touch(2 * projected)
    with ledger.holding(projected + state + 2 * before):  # what comes before, and what stays for the next tokens
        allocate_convolution(ledger, work, mixed, spec.conv_kernel_size)
        _scan(spec, work, ledger)
        ledger.touch(0 if ledger.is_wide else channels * item)
        with ledger.holding(state):  # after the last token
            rms_norm(ledger, tokens * spec.num_heads, spec.head_dim, weighted=True)
            ledger.free(channels * WIDE)
            ledger.touch(narrow + channels * item)
            ledger.touch(channels * (item + WIDE + (0 if ledger.is_wide else WIDE)))
            with ledger.holding(channels * WIDE):  # the gate
                ledger.touch(channels * WIDE + (0 if ledger.is_wide else channels * item) + out)
            ledger.free(channels * item)
    ledger.take(out)


def _scan(spec: KDASpec, work: Work, ledger: Ledger) -> None:
    """Queries and keys of length 1, values in fp32, a decay for each channel, and the delta rule."""
    channels = work.num_tokens * spec.heads_width * WIDE
    heads, narrow = work.num_tokens * spec.num_heads * WIDE, work.num_tokens * spec.head_dim * ledger.item
    widened = 0 if ledger.is_wide else channels
    with ledger.holding(widened):
        ledger.touch((2 if ledger.is_wide else 5) * channels)
        with ledger.holding(2 * channels + heads):  # and how far the state is corrected
            ledger.touch(narrow + channels)
            ledger.touch(2 * channels + widened)
            with ledger.holding(channels):
                allocate_channel_delta_rule(ledger, work, spec.num_heads, spec.head_dim)


def _pieces(spec: KDASpec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    yield from recurrence_pieces(work, 3 * spec.heads_width, spec.conv_kernel_size, spec.heads_width)
    yield Piece("scale", (work.num_tokens * spec.heads_width,))  # decays
    yield Piece("norm", (work.num_tokens * spec.heads_width, spec.head_dim))


EAGER = EagerLayer(_allocate, _pieces, code="kda")
