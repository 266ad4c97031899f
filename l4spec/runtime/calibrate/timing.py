"""Interleaved timing: every case in turn, several rounds, and the median of each case."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

SLICE_SECONDS = 2e-3
"""Time for which one operation is repeated within a turn."""
MOST_REPEATS = 30
_CASES_BETWEEN = 20
PREPARED_REPEATS = 3
"""Runs per turn of cases with a preparation, which takes longer than the run."""


Clock = Literal["wall", "cpu"]
"""`cpu` is the processor time of the calling thread, which a busy machine does not disturb."""
Now = Callable[[], float]
CLOCKS: dict[Clock, Now] = {"wall": time.perf_counter, "cpu": time.thread_time}


@dataclass(slots=True)
class Case:
    """One operation to time, after `prepare`, which is not timed; `seconds` collects the times of single runs."""

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median seconds of a run."""
        return median(self.seconds)

    def take(self, now: Now = time.perf_counter) -> None:
        """Time a few runs by the clock `now`: after one to warm up, or each prepared."""
        if self.prepare is not None:
            for _ in range(PREPARED_REPEATS):
                self.prepare()
                self._time(now)
            return
        start = now()
        self.run()
        once = now() - start
        if once > 5 * SLICE_SECONDS and self.seconds:  # long enough to need no warming up
            self.seconds.append(once)
            return
        for _ in range(max(1, min(MOST_REPEATS, int(SLICE_SECONDS / max(once, 1e-7))))):
            self._time(now)

    def _time(self, now: Now) -> None:
        start = now()
        self.run()
        self.seconds.append(now() - start)


def take_turns(
    cases: Sequence[Case],
    end: float,
    *,
    clock: Clock = "wall",
    progress: Callable[[], None] = lambda: None,
) -> int:
    """Time every case in turn, at least once, until `end` (`time.perf_counter`); returns the number of whole turns.

    `progress` is called every few cases.
    """
    turns = 0
    with _no_garbage():
        while not turns or time.perf_counter() < end:
            for number, case in enumerate(cases):
                if turns and time.perf_counter() > end:
                    return turns
                case.take(CLOCKS[clock])
                if number % _CASES_BETWEEN == 0:
                    progress()
            turns += 1
    return turns


@contextmanager
def _no_garbage() -> Iterator[None]:
    """No collection of garbage in the middle of a measurement."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def rotating(things: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """A call that runs the next of `things` each time, so that its data has left the caches by its next turn."""
    turn = 0

    def run() -> object:
        nonlocal turn
        turn = (turn + 1) % len(things)
        return things[turn]()

    return run
