"""Parallel degrees, and where each rank is in their mesh."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class Layout(BaseModel):
    """Parallel degrees; tp * ep * pp * dp * cp devices.

    Sequences are divided among dp * ep ranks, experts among ep, and the tokens of each sequence among cp.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    tp: int = 1
    ep: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1

    @property
    def num_devices(self) -> int:
        """Devices that the layout uses."""
        return self.tp * self.ep * self.pp * self.dp * self.cp

    @property
    def dense_copies(self) -> int:
        """Ranks with the same shards of all weights but experts: dp * ep * cp."""
        return self.dp * self.ep * self.cp

    @property
    def expert_copies(self) -> int:
        """Ranks with the same shards of experts: dp * cp."""
        return self.dp * self.cp

    @property
    def data_axis(self) -> str:
        """Name of the ranks of dp and ep together: `dp_ep`, or the one axis if the other has a single rank."""
        return "dp_ep" if self.dp > 1 and self.ep > 1 else "dp" if self.dp > 1 else "ep"

    def __str__(self) -> str:
        usual = f"tp{self.tp} ep{self.ep} pp{self.pp} dp{self.dp}"
        return usual if self.cp == 1 else f"{usual} cp{self.cp}"


MESH_ORDER = ("pp", "dp", "ep", "cp", "tp")
"""Axes of the mesh from the slowest to the fastest: neighbouring ranks differ in tp first."""


class MeshCoordinate(NamedTuple):
    """Mesh coordinate of a rank: its index along each axis, in the order of `MESH_ORDER`."""

    pp: int
    dp: int
    ep: int
    cp: int
    tp: int


def place_of(layout: Layout, rank: int) -> MeshCoordinate:
    """Mesh coordinate of a rank, 0 <= rank < num_devices, in row-major order of pp x dp x ep x cp x tp."""
    assert 0 <= rank < layout.num_devices, f"rank {rank} of {layout.num_devices}"
    rest, tp = divmod(rank, layout.tp)
    rest, cp = divmod(rest, layout.cp)
    rest, ep = divmod(rest, layout.ep)
    pp, dp = divmod(rest, layout.dp)
    return MeshCoordinate(pp, dp, ep, cp, tp)


@lru_cache(maxsize=64)
def candidate_layouts(num_devices: int, cp: int = 1) -> tuple[Layout, ...]:
    """All layouts with tp * ep * pp * dp * `cp` = `num_devices`; none if `cp` does not divide it."""
    others, left_over = divmod(num_devices, cp)
    degrees = [] if left_over else divisors(others)
    return tuple(products_of(others, cp, degrees, degrees, degrees))


def products_of(
    num_devices: int, cp: int, tps: Sequence[int], eps: Sequence[int], pps: Sequence[int]
) -> Iterator[Layout]:
    """The layouts of `num_devices` * `cp` devices with these degrees, in their order; dp is the remaining factor."""
    return (
        Layout(tp=tp, ep=ep, pp=pp, dp=num_devices // (tp * ep * pp), cp=cp)
        for tp in tps
        for ep in eps
        if num_devices % (tp * ep) == 0
        for pp in pps
        if num_devices % (tp * ep * pp) == 0
    )


def divisors(n: int) -> list[int]:
    """Divisors of `n`, ascending."""
    low = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*low, *(n // d for d in low)})
