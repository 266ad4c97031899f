"""Allocations and timed pieces of the short convolution and of the recurrences, without gradients."""

from collections.abc import Iterator

from l4spec.layers.common.eager import Piece
from l4spec.layers.common.ledger import FLAG, WIDE, Ledger
from l4spec.layers.declaration import Work
from l4spec.layers.recurrent.chunks import CHANNEL_CHUNK, chunks_of


def allocate_convolution(ledger: Ledger, work: Work, channels: int, kernel: int) -> None:
    """Replace the projected tokens, already counted, by convolved ones: filters as one, padded tokens, two sums."""
    tokens, before = work.num_tokens * channels, work.num_sequences * (kernel - 1) * channels
    filters = channels * kernel
    narrow = 0 if ledger.is_wide else filters * ledger.item
    if not ledger.is_wide:
        ledger.touch(narrow + (tokens + before) * (ledger.item + WIDE))
    with ledger.holding(narrow + (filters + tokens + before) * WIDE):
        ledger.touch(2 * tokens * WIDE + (0 if ledger.is_wide else tokens * ledger.item))


def allocate_delta_rule(ledger: Ledger, work: Work, num_heads: int, key_dim: int, value_dim: int) -> None:
    """Allocate the output in fp32 and, chunk by chunk, scores, corrections, and the state before and after."""
    units = work.num_sequences * num_heads * WIDE
    state, sizes = units * key_dim * value_dim, chunks_of(work.num_queries)
    if work.num_queries == 1:
        ledger.touch(3 * state + 3 * units * value_dim)
        ledger.take(units * value_dim)
        return
    read = 0
    with ledger.holding(state):
        for index, size in enumerate(sizes):
            square, keys, values = units * size * size, units * size * key_dim, units * size * value_dim
            with ledger.holding(size * size * FLAG + square):  # what is left of earlier tokens
                ledger.touch(square)
                with ledger.holding(keys + 2 * units * size):  # keys times beta, what is left of the state
                    ledger.touch(2 * square)
                    with ledger.holding(square):  # the system
                        ledger.touch(keys + 3 * values)
                        with ledger.holding(2 * values):  # its right side and its solution
                            ledger.touch(2 * square)
                            with ledger.holding(square):  # scores
                                ledger.touch(keys + 3 * values)
                                with ledger.holding(values):
                                    earlier = units * size + (state if index else 0)
                                    ledger.touch(earlier + max(2 * keys + 2 * state, 3 * state))
            ledger.take(values)
            read += values
        if len(sizes) > 1:
            ledger.touch(read)  # the joined chunks


def allocate_channel_delta_rule(ledger: Ledger, work: Work, num_heads: int, head_dim: int) -> None:
    """The same with a decay per channel: of each chunk every key as each later token finds it, then as above."""
    units = work.num_sequences * num_heads * WIDE
    state, sizes = units * head_dim * head_dim, chunks_of(work.num_queries, CHANNEL_CHUNK)
    if work.num_queries == 1:
        ledger.touch(3 * state + units * head_dim)
        ledger.take(units * head_dim)
        return
    read = 0
    for index, size in enumerate(sizes):
        square, tokens, earlier = units * size * size, units * size * head_dim, state if index else 0
        with ledger.holding(2 * tokens + earlier):  # sums of decays, keys times beta
            with ledger.holding(2 * tokens + size * size * FLAG):  # keys times beta and queries as one
                ledger.touch(2 * square * head_dim)
                ledger.touch(square * head_dim + 2 * square)
            with ledger.holding(2 * square + tokens):  # system and scores; what is left of the state
                ledger.touch(3 * tokens)
                with ledger.holding(2 * tokens):  # its right side and its solution
                    ledger.touch(square)
                    ledger.touch(3 * tokens)
                    with ledger.holding(2 * tokens):  # what is read; what is left at the end
                        ledger.touch(max(2 * tokens + 2 * state, 3 * state))
        ledger.take(tokens)
        read += tokens
    ledger.take(state)
    if len(sizes) > 1:
        ledger.touch(read)  # the joined chunks
    ledger.free(state)


def allocate_scan(ledger: Ledger, work: Work, num_heads: int, key_dim: int, value_dim: int, *, by_token: bool) -> None:
    """Allocate the output in fp32 and, chunk by chunk, scores and the state before and after.

    With `by_token` keys and values are stored by token, and a product copies both factors by head, else the larger one.
    """
    units = work.num_sequences * num_heads * WIDE
    state, sizes = units * key_dim * value_dim, chunks_of(work.num_queries)
    if work.num_queries == 1:
        ledger.touch(3 * state)
        ledger.take(units * value_dim)
        return
    read = 0
    for index, size in enumerate(sizes):
        square, keys, values = units * size * size, units * size * key_dim, units * size * value_dim
        earlier = state if index else 0
        with ledger.holding(size * size * FLAG + square + earlier + 3 * units * size):
            ledger.touch(2 * square + 2 * keys)
            with ledger.holding(square):
                ledger.touch(keys + 3 * values + keys)
                with ledger.holding(values):
                    copied = keys + values if by_token else max(keys, values)
                    ledger.touch(max(keys + copied + 2 * state, 3 * state))
        ledger.take(values)
        read += values
    if len(sizes) > 1:
        ledger.touch(read)  # the joined chunks


def recurrence_pieces(work: Work, channels: int, kernel: int, values: int) -> Iterator[Piece]:
    """The convolution as sums of products, and the gate as a scale; the scan is made of products that are declared."""
    yield Piece("add", (work.num_tokens * channels,), kernel)
    yield Piece("scale", (work.num_tokens * values,), 2)
