"""Time of a routed layer's experts on one device: a law of activated experts, rows per expert and number format.

A device reads each activated expert's weights once and multiplies its rows. Kernels overlap both to some degree:

    seconds = launch + expert * activated + passes over rows and tokens
              + sum over activated experts of (read^s + multiply^s)^(1/s)
              + lone * bytes of an expert / bandwidth
    read      = bytes of an expert / bandwidth * (1 / memory + narrow_memory * 256 / width)
    multiply  = rows in whole tiles * FLOPs of a row / peak * (1 / compute + narrow_compute * 256 / width)

Kernels choose tiles of about as many rows as an expert has in the mean (8 to 128, a power of 2), and an expert's last
tile is computed whole: skewed rows fill more tiles. The last term is that of few experts, whose tiles do not fill the
GPU. Decoding (up to `DECODE_TOKENS` tokens per step) and prefill have shares of the bandwidth of their own. With shares
of at most 1 no time is below the roofline of any expert, so none is below that of all. Skewed routing activates fewer
experts (faster where weights bound) and gives some of them, or one rank, more rows (slower where matmuls bound).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated

from pydantic import Field

from l4spec.catalog.entry import Entry, Source
from l4spec.layers.base import AsTuple, Spec
from l4spec.units import Seconds
from planners.catalog.loader import find_shipped, load

DECODE_TOKENS = 128
"""Tokens of all ranks up to which kernels are tuned for few rows an expert."""
ROW_BYTES = 4
"""A pass over a row reads and writes one bf16 number for each of its entries."""
_SMALLEST_TILE, _LARGEST_TILE = 8, 128
_ROUNDING = 1e-9
"""Share of a tile that is rounding of a mean."""
_NARROW = 256
"""The width that the terms of narrow experts refer to."""
Part = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class ExpertWork:
    """Work of one device's experts in a step.

    `rows` are pairs (experts, rows): a number of activated experts (a mean, so not an integer) with that many rows
    each. `expert_bytes` are one expert's weights on this device, `row_flops` a row's FLOPs there; `width` is the
    intermediate width on this device and `hidden` the residual stream's. `tokens` are those of all ranks, `mean_rows`
    the rows of an expert in the mean over all experts of all ranks, reached or not.
    """

    rows: tuple[tuple[float, float], ...]
    expert_bytes: float
    row_flops: float
    width: float
    hidden: int
    tokens: float
    mean_rows: float

    @property
    def tile(self) -> int:
        """Rows of a tile."""
        return min(_LARGEST_TILE, max(_SMALLEST_TILE, 1 << (ceil(self.mean_rows) - 1).bit_length()))

    def in_tiles(self, rows: float) -> float:
        """Rows that are computed for an expert's `rows`: whole tiles."""
        return self.tile * ceil(rows / self.tile - _ROUNDING)

    @property
    def activated(self) -> float:
        """Experts whose weights are read."""
        return sum(count for count, _ in self.rows)

    @property
    def num_rows(self) -> float:
        """Rows of all experts."""
        return sum(count * rows for count, rows in self.rows)

    def bound(self, bandwidth: float, peak: float) -> float:
        """The roofline in seconds: weights at the bandwidth, or rows at the peak, whichever takes longer."""
        return max(self.activated * self.expert_bytes / bandwidth, self.num_rows * self.row_flops / peak)


class KernelError(Spec):
    """Relative errors on cells of shapes that were fitted, or were not."""

    median: Positive
    p90: Positive
    num_cells: Annotated[int, Field(ge=1)]


class GroupedMatmul(Spec):
    """Factors of one kernel on one GPU in one format (see the top of this module)."""

    kernel: str
    version: str
    hardware: str
    dtype: str
    launch: Seconds
    expert: Seconds
    memory: Part
    prefill_memory: Part
    compute: Part
    narrow_memory: Positive
    narrow_compute: Positive
    row: Positive
    token: Positive
    lone: Positive
    sharpness: Annotated[float, Field(ge=1)]
    fitted: KernelError
    unfitted: KernelError

    def seconds(self, work: ExpertWork, bandwidth: float, peak: float) -> float:
        """The time of all experts in seconds; `bandwidth` in bytes and `peak` in FLOPs a second of the GPU."""
        share = self.memory if work.tokens <= DECODE_TOKENS else self.prefill_memory
        narrow = _NARROW / work.width
        read = work.expert_bytes / bandwidth * (1 / share + self.narrow_memory * narrow)
        row = work.row_flops / peak * (1 / self.compute + self.narrow_compute * narrow)
        power = self.sharpness
        experts: float = sum(
            count * (read**power + (work.in_tiles(rows) * row) ** power) ** (1 / power) for count, rows in work.rows
        )
        passes = self.row * work.num_rows + self.token * work.tokens
        moved = passes * work.hidden * ROW_BYTES / bandwidth
        lone = self.lone * work.expert_bytes / bandwidth * min(1.0, work.activated)
        return self.launch + self.expert * work.activated + experts + lone + moved


class GroupedMatmulLaws(Entry):
    """Every measured kernel of an engine: its measurements, fit and errors."""

    source: Source
    fitted_on: Source
    kernels: Annotated[tuple[GroupedMatmul, ...], AsTuple, Field(min_length=1)]

    def find(self, hardware: str, dtype: str, kernel: str | None = None) -> GroupedMatmul | None:
        """The law of a kernel; without a name the one of the newest version, of several the one with most cells."""
        matches = [
            law
            for law in self.kernels
            if (law.hardware, law.dtype) == (hardware, dtype) and kernel in (None, law.kernel)
        ]
        return max(matches, key=lambda law: (_version(law.version), law.unfitted.num_cells), default=None)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in text.split("."))


def grouped_matmul_laws(engine: str) -> GroupedMatmulLaws | None:
    """The laws of a catalogue engine; None without measurements of its kernels."""
    if find_shipped("grouped_matmul", engine) is None:
        return None
    return load("grouped_matmul", GroupedMatmulLaws, engine)


def binned(loads: Sequence[Sequence[int]]) -> tuple[tuple[float, float], ...]:
    """Pairs (experts, rows) of equally likely loads, rows gathered by powers of the square root of 2.

    Each of `loads` counts the rows of every expert of one device.
    """
    bins: dict[int, tuple[int, int]] = {}
    for load_ in loads:
        for rows in load_:
            if rows:
                key = rows if rows < 4 else (rows * rows).bit_length() + 4
                count, total = bins.get(key, (0, 0))
                bins[key] = count + 1, total + rows
    return tuple((count / len(loads), total / count) for _, (count, total) in sorted(bins.items()))
