"""Times of several things that are run in turn, so that a noisy moment hits all of them."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

ENOUGH_SECONDS = 0.2
MOST_REPEATS = 10


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds per round of everything that was measured; a round runs each thing once or a few times."""

    rounds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """Median seconds."""
        return statistics.median(self.rounds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Ratio of the times of `slow` and `fast`: the median over rounds of the ratio within a round."""
        return statistics.median(a / b for a, b in zip(self.rounds[slow], self.rounds[fast], strict=True))


@dataclass(frozen=True, slots=True)
class Timed:
    """Something to time: `run` is timed, `prepare` runs before it and is not.

    With `is_slow` it runs once per round without warm-up: it takes seconds, and has run before.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    is_slow: bool = False


Clock = Literal["wall", "cpu"]
"""`cpu` is the processor time of all threads of this process, which on one thread a busy machine does not disturb."""


def interleaved(things: Mapping[str, Timed], rounds: int, device: torch.device, clock: Clock = "wall") -> Times:
    """Run everything once unmeasured, then `rounds` times in turn.

    Quick functions are repeated within a round, of which the median counts.
    """
    repeats = {name: 1 if thing.is_slow else _repeats(_once(thing, device, clock)) for name, thing in things.items()}
    by_thing: dict[str, list[float]] = {name: [] for name in things}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, thing in things.items():
                by_thing[name].append(statistics.median(_once(thing, device, clock) for _ in range(repeats[name])))
    finally:
        gc.enable()
    return Times({name: tuple(seconds) for name, seconds in by_thing.items()})


def _repeats(seconds: float) -> int:
    return max(1, min(MOST_REPEATS, int(ENOUGH_SECONDS / seconds)))


def _once(thing: Timed, device: torch.device, clock: Clock) -> float:
    now = time.perf_counter if clock == "wall" else time.process_time
    thing.prepare()
    _wait(device)
    start = now()
    thing.run()
    _wait(device)
    return now() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
