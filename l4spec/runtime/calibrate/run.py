"""One calibration: everything measured in turns within a given time, as plain numbers."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from l4spec.progress import Progress
from l4spec.runtime.build import DTYPES
from l4spec.runtime.calibrate.attending import cached, causal, masked
from l4spec.runtime.calibrate.buffers import Buffers
from l4spec.runtime.calibrate.machine import MachineConditions, conditions
from l4spec.runtime.calibrate.products import expert_products, products, residency
from l4spec.runtime.calibrate.reference import Reference, references
from l4spec.runtime.calibrate.routing import dispatch, experts, route
from l4spec.runtime.calibrate.sizes import Sizes, sizes_for
from l4spec.runtime.calibrate.streams import streams
from l4spec.runtime.calibrate.tables import RawTable, TableCases
from l4spec.runtime.calibrate.timing import Clock, take_turns

MEASURED_DTYPES = ("fp32", "bf16")
DEFAULT_SECONDS = 100.0


@dataclass(slots=True)
class Calibration:
    """Measurements of a calibration: tables by number format and name, and narrow reference models.

    `turns` is the least number of repetitions of each; times are medians over all of them.
    """

    conditions: MachineConditions
    clock: Clock = "wall"
    turns: int = 0
    seconds: float = 0.0
    tables: dict[str, dict[str, RawTable]] = field(default_factory=dict)
    references: dict[str, list[Reference]] = field(default_factory=dict)


def calibrate(
    seconds: float = DEFAULT_SECONDS,
    *,
    threads: int | None = None,
    dtypes: Sequence[str] = MEASURED_DTYPES,
    sizes: Sizes | None = None,
    clock: Clock = "wall",
    progress: Progress | None = None,
) -> Calibration:
    """Measure this machine's CPU in about `seconds`, at least one turn of everything.

    `threads` is how many of torch's threads compute, by default as many as it takes by itself. `sizes` are by default
    the full grids where there is time for them. With `clock="cpu"` one thread computes, and the time that it had the
    processor counts, for a machine that is busy otherwise. `progress` is called with (elapsed, total) milliseconds.
    """
    start, before = time.perf_counter(), torch.get_num_threads()
    threads = 1 if clock == "cpu" else threads
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        calibration = Calibration(conditions(), clock)
        turns = []
        for number, dtype in enumerate(dtypes):
            end = start + seconds * (number + 1) / len(dtypes)
            with torch.no_grad():
                turns.append(
                    _one(calibration, dtype, sizes or sizes_for(seconds), end, clock, _timed(progress, start, seconds))
                )
        calibration.turns = min(turns)
    finally:
        torch.set_num_threads(before)
    calibration.seconds = time.perf_counter() - start
    return calibration


def _timed(progress: Progress | None, start: float, seconds: float) -> Callable[[], None]:
    if progress is None:
        return lambda: None
    total = round(1000 * seconds)
    return lambda: progress(min(round(1000 * (time.perf_counter() - start)), total), total)


def _one(
    calibration: Calibration, dtype: str, sizes: Sizes, end: float, clock: Clock, progress: Callable[[], None]
) -> int:
    buffers = Buffers(sizes, DTYPES[dtype])
    tables = _cases(buffers)
    narrow = references(buffers)
    cases = [case for table in tables.values() for case in table]
    every = [*cases, *(case for each in narrow for case in each.cases())]
    turns = take_turns(every, end, clock=clock, progress=progress)
    calibration.tables[dtype] = {name: table.table() for name, table in tables.items()}
    calibration.references[dtype] = narrow
    return turns


def _cases(buffers: Buffers) -> dict[str, TableCases]:
    return {
        "product": products(buffers),
        "expert_product": expert_products(buffers),
        "causal": causal(buffers),
        "masked": masked(buffers),
        "cached": cached(buffers),
        "route": route(buffers),
        "dispatch": dispatch(buffers),
        "experts": experts(buffers),
        "residency": residency(buffers),
        **streams(buffers),
    }
