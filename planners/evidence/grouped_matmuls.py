"""Measured times of routed experts beside the law of grouped matmuls, on shapes that no coefficient was fitted on.

`grouped_matmuls.csv` holds a sample of the measured cells; `benchmarks/grouped_matmuls.py` draws it and fits the law.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from random import Random

from planners.catalog import hardware
from planners.evidence.spread import percentile
from planners.timing.grouped_matmul import ExpertWork, binned, grouped_matmul_laws
from planners.timing.machine import Machine

CELLS = Path(__file__).with_name("grouped_matmuls.csv")
HIDDEN, INTERMEDIATE = 5120, 8192
"""Llama 4's widths: the only ones of the cells."""
BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625}
"""Bytes of a weight with its scales, by format."""
PEAKS = {"bf16": "bf16", "fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4"}
DRAWS = 12
MATTERS = 1.1
"""Skew matters where it changes a time by more than this factor."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured time: `milliseconds` of a layer's experts on the busiest rank, `tokens` those of all ranks.

    `skew` is the exponent of the power law from which experts' shares were drawn; 0 is balanced.
    """

    engine: str
    version: str
    kernel: str
    hardware: str
    dtype: str
    experts: int
    tp: int
    ep: int
    tokens: int
    skew: float
    milliseconds: float

    @property
    def case(self) -> tuple[object, ...]:
        """Key of a case, equal for cells that differ only in skew."""
        return tuple(getattr(self, field.name) for field in fields(self) if field.name not in ("skew", "milliseconds"))


def is_fitted(experts: int, tp: int, ep: int) -> bool:
    """True if coefficients may be fitted on a shape: every other one, as on a chequerboard of tp, ep and experts."""
    return (tp.bit_length() + ep.bit_length() + (experts > 16)) % 2 == 0


def read_cells(path: Path = CELLS) -> tuple[Cell, ...]:
    """The cells of a CSV file with the columns of `Cell`."""
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(_cell(row) for row in csv.DictReader(file))


def _cell(row: Mapping[str, str]) -> Cell:
    values = {field.name: row[field.name] for field in fields(Cell)}
    numbers = {name: int(values[name]) for name in ("experts", "tp", "ep", "tokens")}
    exact = {name: float(values[name]) for name in ("skew", "milliseconds")}
    return Cell(**{**values, **numbers, **exact})  # type: ignore[arg-type]


@lru_cache(maxsize=4096)
def rows_of_busiest(tokens: int, experts: int, ep: int, skew: float) -> tuple[tuple[float, float], ...]:
    """Pairs (experts, rows) of the rank with most tokens, one choice per token.

    Balanced tokens go round the experts, evenly spread where they are fewer. With skew every expert's share is drawn
    from a density x^-skew, on [1, 0.8 tokens], or on [0.01, 2] where tokens do not outnumber experts; shares are
    rounded to whole tokens and what is missing goes to the least loaded experts. The mean of several draws.
    """
    if not skew:
        loads = [0] * experts
        for token in range(tokens):
            loads[token % experts if tokens >= experts else token * experts // tokens] += 1
        return binned([loads[: experts // ep]])
    random = Random(f"{tokens} {experts} {ep} {skew}")
    return binned([_busiest(_drawn(tokens, experts, skew, random), ep) for _ in range(DRAWS)])


def _drawn(tokens: int, experts: int, skew: float, random: Random) -> list[int]:
    low, high = (1.0, 0.8 * tokens) if tokens > experts else (0.01, 2.0)
    power = 1 - skew
    start, end = low**power, high**power
    shares = [(start + (end - start) * random.random()) ** (1 / power) for _ in range(experts)]
    scale = tokens / sum(shares)
    loads = [round(share * scale) for share in shares]
    order = sorted(range(experts), key=lambda expert: (loads[expert], _spread(expert, experts)))
    missing = tokens - sum(loads)
    if missing < 0:
        order = [expert for expert in reversed(order) if loads[expert]]
    for turn in range(abs(missing)):
        loads[order[turn % len(order)]] += 1 if missing > 0 else -1
    return loads


def _spread(expert: int, experts: int) -> int:
    """Among equals neighbours come far apart, so that they fill ranks evenly: bits in reverse order."""
    return int(f"{expert:0{experts.bit_length() - 1}b}"[::-1], 2)


def _busiest(loads: Sequence[int], ep: int) -> Sequence[int]:
    size = len(loads) // ep
    return max((loads[start : start + size] for start in range(0, len(loads), size)), key=sum)


def work_of(cell: Cell) -> ExpertWork:
    """The work of a cell's busiest rank."""
    width = INTERMEDIATE / cell.tp
    return ExpertWork(
        rows=rows_of_busiest(cell.tokens, cell.experts, cell.ep, cell.skew),
        expert_bytes=3 * HIDDEN * width * BYTES[cell.dtype],
        row_flops=6 * HIDDEN * width,
        width=width,
        hidden=HIDDEN,
        tokens=cell.tokens,
        mean_rows=cell.tokens / cell.experts,
    )


def speeds(name: str, dtype: str) -> tuple[float, float]:
    """Bandwidth in bytes and dense peak in FLOPs a second of a catalogue GPU."""
    machine = Machine(hardware(name), 8)
    peak = machine.peak(PEAKS[dtype])
    assert peak is not None, "every GPU of the cells has a published peak"
    return machine.bandwidth, peak


def predicted_ms(cell: Cell) -> float:
    """Milliseconds of a cell by the law."""
    laws = grouped_matmul_laws(cell.engine)
    law = None if laws is None else laws.find(cell.hardware, cell.dtype, cell.kernel)
    assert law is not None, "cells are of kernels that have a law"
    return 1e3 * law.seconds(work_of(cell), *speeds(cell.hardware, cell.dtype))


@dataclass(frozen=True, slots=True)
class KernelGroup:
    """Cells of one engine and format: errors, and how often the law gives the direction of skew where it matters."""

    engine: str
    dtype: str
    num_cells: int
    num_gpus: int
    median: float
    p90: float
    num_skewed: int
    right_direction: float | None


def summarise_cells(cells: Iterable[Cell]) -> tuple[KernelGroup, ...]:
    """Groups by engine and format, and one of all cells at the end."""
    judged = [(cell, predicted_ms(cell)) for cell in cells]
    keys = sorted({(cell.engine, cell.dtype) for cell, _ in judged})
    groups = [_group(*key, [row for row in judged if (row[0].engine, row[0].dtype) == key]) for key in keys]
    return (*groups, _group("all", "all", judged))


def _group(engine: str, dtype: str, judged: Sequence[tuple[Cell, float]]) -> KernelGroup:
    errors = sorted(abs(predicted / cell.milliseconds - 1) for cell, predicted in judged)
    right = directions(judged)
    return KernelGroup(
        engine,
        dtype,
        len(judged),
        len({cell.hardware for cell, _ in judged}),
        percentile(errors, 50),
        percentile(errors, 90),
        len(right),
        sum(right) / len(right) if right else None,
    )


def directions(judged: Sequence[tuple[Cell, float]]) -> list[bool]:
    """For each skewed cell that is more than a tenth from its balanced one: True if the law predicts the sign."""
    balanced = {cell.case: (cell.milliseconds, predicted) for cell, predicted in judged if not cell.skew}
    right = []
    for cell, predicted in judged:
        if cell.skew and cell.case in balanced:
            measured, expected = balanced[cell.case]
            ratio = cell.milliseconds / measured
            if not 1 / MATTERS <= ratio <= MATTERS:
                right.append((ratio > 1) == (predicted > expected))
    return right
