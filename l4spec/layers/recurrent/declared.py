"""Declarations that all recurrent kinds share: cached states, and those saved in training."""

from collections.abc import Mapping
from types import MappingProxyType

from l4spec.layers.declaration import Bound, Buffer, CacheEntry, Dim, Work
from l4spec.layers.recurrent.chunks import CHUNK
from l4spec.units import ceil_div

STATE_BYTES = 4
"""Bytes of an element of a recurrent state, which sums over the whole sequence: fp32."""


def cached_states(kernel_size: int, channels: Dim, state: tuple[Dim, ...]) -> tuple[CacheEntry, ...]:
    """Per sequence: the `kernel_size` - 1 last inputs of the convolution [taps, channels], at least 2 bytes each, and
    the recurrent state in fp32."""
    taps = Dim("kernel", kernel_size - 1)
    return (
        CacheEntry("convolution", (taps, channels), Bound("state"), least_bytes=2),
        CacheEntry("state", state, Bound("state"), least_bytes=STATE_BYTES),
    )


def per_token(
    work: Work, widths: Mapping[str, Dim], gradient_of: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> tuple[Buffer, ...]:
    """One buffer [tokens, width] of the model's number format for each name, and what it alone is saved for."""
    return tuple(
        Buffer(name, work.num_tokens, (dim,), gradient_of=gradient_of.get(name, ())) for name, dim in widths.items()
    )


def states_of_chunks(work: Work, state: tuple[Dim, ...], chunk: int = CHUNK) -> Buffer:
    """The states after each chunk of `chunk` tokens, in fp32, which fused kernels keep for the backward pass."""
    num_chunks = work.num_sequences * ceil_div(work.num_queries, chunk)
    return Buffer("chunk_states", num_chunks, state, bytes_per_element=STATE_BYTES)
