"""Allocations and timed pieces of the module of the gated delta net."""

from collections.abc import Iterator

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import WIDE, Ledger, rms_norm
from l4spec.layers.declaration import Work
from l4spec.layers.gated_delta_net.spec import GatedDeltaNetSpec
from l4spec.layers.recurrent.ledger import allocate_convolution, allocate_delta_rule, recurrence_pieces


def _allocate(spec: GatedDeltaNetSpec, width: Width, work: Work, ledger: Ledger) -> None:
    """Projections as one tensor and their convolution; the scan in fp32; the norm of each head, gate and output."""
    tokens, item = work.num_tokens, ledger.item
    values = tokens * spec.num_value_heads * spec.value_head_dim
    projected, out = tokens * spec.conv_width * item, tokens * width.hidden_size * item
    state = work.num_sequences * spec.num_value_heads * spec.key_head_dim * spec.value_head_dim * WIDE
    before = work.num_sequences * (spec.conv_kernel_size - 1) * spec.conv_width * item
    ledger.touch(2 * projected)
    with ledger.holding(projected + state + 2 * before):  # what comes before, and what stays for the next tokens
        allocate_convolution(ledger, work, spec.conv_width, spec.conv_kernel_size)
        _scan(spec, work, ledger)
        ledger.touch(0 if ledger.is_wide else values * item)
        with ledger.holding(state):  # after the last token
            rms_norm(ledger, tokens * spec.num_value_heads, spec.value_head_dim, weighted=True)
            ledger.free(values * WIDE)
            ledger.touch(values * (item + WIDE + (0 if ledger.is_wide else WIDE)))
            with ledger.holding(values * WIDE):  # the gate
                ledger.touch(2 * values * WIDE + (0 if ledger.is_wide else values * item) + out)
            ledger.free(values * item)
    ledger.take(out)


def _scan(spec: GatedDeltaNetSpec, work: Work, ledger: Ledger) -> None:
    """Queries and keys of length 1, repeated for the values that share them, gates, and the delta rule."""
    tokens = work.num_tokens
    keys = tokens * spec.num_key_heads * spec.key_head_dim * WIDE
    values = tokens * spec.num_value_heads * spec.value_head_dim * WIDE
    repeated = tokens * spec.num_value_heads * spec.key_head_dim * WIDE
    gates = tokens * spec.num_value_heads * WIDE
    shared = spec.num_value_heads > spec.num_key_heads
    widened = 0 if ledger.is_wide else values
    with ledger.holding(widened):
        ledger.touch((3 if ledger.is_wide else 5) * keys)
        if shared:
            ledger.touch(2 * keys + 2 * repeated)
        with ledger.holding(2 * (repeated if shared else keys)):
            ledger.touch(5 * gates)
            with ledger.holding(2 * gates):
                allocate_delta_rule(ledger, work, spec.num_value_heads, spec.key_head_dim, spec.value_head_dim)


def _pieces(spec: GatedDeltaNetSpec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    values = spec.num_value_heads * spec.value_head_dim
    yield from recurrence_pieces(work, spec.conv_width, spec.conv_kernel_size, values)
    yield Piece("norm", (work.num_tokens * values, spec.value_head_dim))


EAGER = EagerLayer(_allocate, _pieces, code="gated_delta_net")
