"""One replica that generates: sequences that share decode steps, each ended by its own length."""

import math
from collections.abc import Sequence
from heapq import heappop, heappush

Begun = tuple[int, float, int]
"""Number of an answer in the order of beginning, when it was begun, and the updates done by then."""


class ReplicaClock:
    """All sequences get one token a step. `progress` counts steps made, so that an answer ends at a known progress.

    `step_seconds` are a decode step's seconds with 0, 1, … sequences, up to as many as the replica takes.
    """

    def __init__(self, step_seconds: Sequence[float]) -> None:
        self.step_seconds, self.slots = step_seconds, len(step_seconds) - 1
        self.ends: list[tuple[float, Begun]] = []
        self.progress, self.time, self.stopped_until = 0.0, 0.0, 0.0
        self.busy_seconds = 0.0
        self.is_draining = False

    @property
    def room(self) -> int:
        """Answers that may be begun now."""
        return 0 if self.is_draining else self.slots - len(self.ends)

    def advance(self, now: float) -> None:
        """Make the steps until `now`."""
        if self.ends:
            began = self.time if self.stopped_until <= self.time else min(self.stopped_until, now)
            self.busy_seconds += now - began
            self.progress += (now - began) / self.step_seconds[len(self.ends)]
        self.time = now

    def begin(self, length: int, number: int, version: int) -> None:
        """One more answer, of this many tokens; `advance` comes first."""
        heappush(self.ends, (self.progress + length, (number, self.time, version)))

    def finish(self) -> Begun:
        """The answer that ends first has ended."""
        self.progress = max(self.progress, self.ends[0][0])
        return heappop(self.ends)[1]

    def next_end(self) -> float:
        """Time at which the next answer ends, if nothing changes; infinity without one."""
        if not self.ends:
            return math.inf
        left = max(0.0, self.ends[0][0] - self.progress)
        return max(self.time, self.stopped_until) + left * self.step_seconds[len(self.ends)]

    def stop(self, until: float) -> None:
        """No steps until then."""
        self.stopped_until = max(self.stopped_until, until)
