"""Allocations and timed pieces of the module of Mamba-2."""

from collections.abc import Iterator

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import WIDE, Ledger, rms_norm
from l4spec.layers.declaration import Work
from l4spec.layers.mamba2.spec import Mamba2Spec
from l4spec.layers.recurrent.ledger import allocate_convolution, allocate_scan, recurrence_pieces


def _allocate(spec: Mamba2Spec, width: Width, work: Work, ledger: Ledger) -> None:
    """Projections as one tensor and their convolution; the scan in fp32; gate and norm of each group; the output."""
    tokens, item = work.num_tokens, ledger.item
    inner = tokens * spec.inner_size
    projected, out = tokens * spec.conv_width * item, tokens * width.hidden_size * item
    state = work.num_sequences * spec.num_heads * spec.state_size * spec.head_dim * WIDE
    before = work.num_sequences * (spec.conv_kernel_size - 1) * spec.conv_width * item
    shared = 2 * tokens * spec.num_groups * spec.state_size * WIDE
    repeated = 2 * tokens * spec.num_heads * spec.state_size * WIDE
    step = tokens * spec.num_heads * WIDE
    ledger.touch(2 * projected)
    with ledger.holding(projected + state + 2 * before):
        biases = spec.conv_width * item if spec.conv_bias else 0
        with ledger.holding(biases):
            allocate_convolution(ledger, work, spec.conv_width, spec.conv_kernel_size)
        widened = 0 if ledger.is_wide else inner * WIDE
        is_repeated = spec.num_heads > spec.num_groups
        own = (repeated if is_repeated else 0) + (0 if ledger.is_wide or is_repeated else shared)
        ledger.touch(widened + (0 if ledger.is_wide else shared) + (repeated if is_repeated else 0))
        with ledger.holding(widened + own):
            ledger.touch(4 * step)
            with ledger.holding(2 * step):
                with ledger.holding(inner * WIDE):  # steps times values
                    sizes = (spec.num_heads, spec.state_size, spec.head_dim)
                    allocate_scan(ledger, work, *sizes, by_token=not is_repeated)
                with ledger.holding(state):  # after the last token
                    ledger.touch(3 * inner * WIDE)
                    with ledger.holding(inner * (WIDE + item)):  # what was read, laid by token, and z
                        ledger.touch(3 * inner * WIDE)
                        with ledger.holding(inner * WIDE):
                            rms_norm(
                                ledger, tokens * spec.num_groups, spec.inner_size // spec.num_groups, weighted=False
                            )
                            ledger.free(inner * item)
                        ledger.touch(2 * inner * item + out)
                    ledger.free(inner * WIDE)
    ledger.take(out)


def _pieces(spec: Mamba2Spec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    yield from recurrence_pieces(work, spec.conv_width, spec.conv_kernel_size, spec.inner_size)
    yield Piece("norm", (work.num_tokens * spec.inner_size, spec.inner_size // spec.num_groups))


EAGER = EagerLayer(_allocate, _pieces, code="mamba2")
