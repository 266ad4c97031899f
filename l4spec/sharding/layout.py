"""Parallel degrees, and where each rank stands in their mesh."""

from functools import lru_cache
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class Layout(BaseModel):
    """Parallel degrees; tp * ep * pp * dp devices. Sequences are divided among dp * ep ranks, experts among ep."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    tp: int = 1
    ep: int = 1
    pp: int = 1
    dp: int = 1

    @property
    def num_devices(self) -> int:
        """Devices that the layout uses."""
        return self.tp * self.ep * self.pp * self.dp

    def __str__(self) -> str:
        return f"tp{self.tp} ep{self.ep} pp{self.pp} dp{self.dp}"


MESH_ORDER = ("pp", "dp", "ep", "tp")
"""Axes of the mesh from the slowest to the fastest: neighbouring ranks differ in tp first."""


class Place(NamedTuple):
    """Where a rank stands: its index along each axis, in the order of `MESH_ORDER`."""

    pp: int
    dp: int
    ep: int
    tp: int


def place_of(layout: Layout, rank: int) -> Place:
    """The place of a rank, 0 <= rank < num_devices, in the mesh pp x dp x ep x tp laid row by row."""
    assert 0 <= rank < layout.num_devices, f"rank {rank} of {layout.num_devices}"
    rest, tp = divmod(rank, layout.tp)
    rest, ep = divmod(rest, layout.ep)
    pp, dp = divmod(rest, layout.dp)
    return Place(pp, dp, ep, tp)


@lru_cache(maxsize=256)
def candidate_layouts(num_devices: int) -> tuple[Layout, ...]:
    """Every way to write `num_devices` as tp * ep * pp * dp."""
    divisors = _divisors(num_devices)
    return tuple(
        Layout(tp=tp, ep=ep, pp=pp, dp=num_devices // (tp * ep * pp))
        for tp in divisors
        for ep in divisors
        if num_devices % (tp * ep) == 0
        for pp in divisors
        if num_devices % (tp * ep * pp) == 0
    )


def _divisors(n: int) -> list[int]:
    low = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*low, *(n // d for d in low)})
