"""Grids of sizes to measure: powers, since times are interpolated between logarithms."""

from dataclasses import dataclass

from l4spec.units import MiB

Grid = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The grids: each a tuple of axes. `cold_bytes` is how much is read before something is read again from memory."""

    product: Grid
    """Rows, inputs and outputs of a matrix product."""
    expert_product: Grid
    """The same where the rows are those of an expert, more than a few."""
    causal: Grid
    """Sequences x heads, tokens, width of a head."""
    masked: Grid
    """Sequences x heads, queries, keys, width of a head."""
    cached: Grid
    """Sequences x key heads, query heads to a key head, cached tokens, width of a head."""
    stream: Grid
    """Elements."""
    norm: Grid
    """Elements, width of a row."""
    route: Grid
    """Tokens, experts, experts per token."""
    dispatch: Grid
    """(token, expert) pairs, experts."""
    residency: tuple[int, ...]
    """Bytes of matrices that are read again and again."""
    cold_bytes: int
    evicting_bytes: int
    """Weights after whose reading nothing else is in the caches."""


FULL = Sizes(
    product=((1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024), (64, 256, 1024, 4096), (64, 256, 1024, 4096)),
    expert_product=((4, 16, 64, 256), (64, 512, 4096), (64, 512, 4096)),
    causal=((2, 8, 32), (16, 64, 256, 512, 1024), (32, 64, 128, 256)),
    masked=((2, 8, 32), (32, 512), (64, 512, 2048), (32, 128)),
    cached=((1, 2, 8, 32), (1, 8), (32, 256, 2048), (32, 128, 512)),
    stream=(tuple(1 << power for power in (6, 10, 13, 15, 17, 19, 21, 22, 23, 24, 25)),),
    norm=(tuple(1 << power for power in (7, 11, 14, 17, 19, 21, 23, 25)), (32, 128, 1024)),
    route=((1, 16, 256, 4096), (4, 32, 128), (1, 2, 8)),
    dispatch=((2, 32, 512, 8192), (4, 32, 128)),
    residency=tuple(count * MiB for count in (2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128)),
    cold_bytes=256 * MiB,
    evicting_bytes=64 * MiB,
)
COARSE = Sizes(
    product=((1, 64), (64, 512), (64, 512)),
    expert_product=((4, 64), (64, 512), (64, 512)),
    causal=((2, 8), (16, 128), (32, 128)),
    masked=((2, 8), (32, 128), (64, 256), (32, 128)),
    cached=((1, 8), (1, 4), (32, 256), (32, 128)),
    stream=((1 << 6, 1 << 12, 1 << 18),),
    norm=((1 << 7, 1 << 12, 1 << 18), (32, 128)),
    route=((1, 64), (4, 32), (1, 2)),
    dispatch=((2, 128), (4, 32)),
    residency=(2 * MiB, 16 * MiB),
    cold_bytes=16 * MiB,
    evicting_bytes=4 * MiB,
)
"""A few points each, for a first impression: predictions from it are rough."""
FULL_FROM_SECONDS = 40.0
"""With less time than this, coarse grids are measured."""


def sizes_for(seconds: float) -> Sizes:
    """The grids that can be measured well in this time."""
    return FULL if seconds >= FULL_FROM_SECONDS else COARSE
