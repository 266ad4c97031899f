"""Discrete-event simulation of online RL: answers begin and end, updates end and weights are pushed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from planners.recipes.rl.replica_clock import Begun, ReplicaClock
from planners.recipes.rl.setup import RlSetup, RlTimes

SETTLED = (24, 24)
"""Updates that are left out, and updates that times are means over, where a queue of answers fills: slowly."""
IN_TURNS = (1, 4)
"""The same where none fills: the first update differs, others by how their answers are dealt to replicas."""


@dataclass(slots=True)
class _Tally:
    """Sums over the measured steps."""

    since: float = 0.0
    updates: int = 0
    staleness: int = 0
    most_stale: int = 0
    latency: float = 0.0
    answers_taken: int = 0
    in_flight_area: float = 0.0
    in_flight_at_updates: int = 0
    training_seconds: float = 0.0
    busy_before: float = 0.0


@dataclass
class RlSimulation:
    """One setup as it runs.

    `ends` are the times at which the next answer of each replica ends, `learner_ends` that of the chunk in training.
    """

    setup: RlSetup
    now: float = 0.0
    version: int = 0
    begun: int = 0
    num_ended: int = 0
    taken: int = 0
    chunks_done: int = 0
    learner_ends: float = math.inf
    ready: list[Begun] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    all_ended_below: int = 0
    tally: _Tally = field(default_factory=_Tally)

    def __post_init__(self) -> None:
        one = self.setup
        step_seconds = [one.decode.at(sequences) for sequences in range(one.slots + 1)]
        self.replicas = [ReplicaClock(step_seconds) for _ in range(one.replicas)]
        self.ends = [math.inf] * one.replicas
        self.is_training = False
        self.lengths = self._lengths()
        self._set_limits()

    def run(self, warm_up: int, measured: int) -> RlTimes:
        """Means over `measured` steps after `warm_up` ones."""
        self._begin_anywhere()
        ends, last = self.ends, warm_up + measured
        while self.version < last:
            at = min(ends)
            if self.learner_ends <= at:
                self._move_to(self.learner_ends)
                self._learner_done()
                if self.version == warm_up and self.chunks_done == 0:
                    self._start_tally()
                self._begin_anywhere()
            else:
                self._move_to(at)
                self._answer_done(ends.index(at))
            if not self.is_training and len(self.ready) >= self.awaited:
                self._take()
        return self._times()

    def _lengths(self) -> Iterator[int]:
        number = 0
        while True:
            yield from self.setup.lengths.draw(self.setup.answers, self.setup.seed * 1_000_003 + number)
            number += 1

    def _set_limits(self) -> None:
        """Update the limits: answers that may have begun at this version, and answers in the learner's next chunk."""
        answers, chunks, done = self.setup.answers, self.setup.chunks, self.chunks_done
        self.most_begun = int((self.version + 1 + self.setup.staleness) * answers)
        self.awaited = answers * (done + 1) // chunks - answers * done // chunks

    def _move_to(self, at: float) -> None:
        self.tally.in_flight_area += (self.begun - self.taken) * (at - self.now)
        if self.is_training:
            self.tally.training_seconds += at - self.now
        self.now = at

    def _num_allowed(self) -> int:
        """Answers that may be begun now, on any replica."""
        return 0 if self.is_training and self.setup.is_colocated else self.most_begun - self.begun

    def _answer_done(self, index: int) -> None:
        """The answer that ends first on a replica has ended: others begin, in its place where all others are full."""
        replica = self.replicas[index]
        replica.advance(self.now)
        answer = replica.finish()
        self.num_ended += 1
        if self.setup.in_order:
            heappush(self.ready, answer)
            self.ended.add(answer[0])
        else:
            self.ready.append(answer)
        if replica.is_draining and not replica.ends:
            replica.is_draining = False
            replica.stop(self.now + self.setup.push_seconds)
        room = replica.room
        if self.begun - self.num_ended + room < len(self.replicas) * self.setup.slots:
            self._begin_anywhere()
        else:
            for _ in range(min(room, self._num_allowed())):
                self._begin_on(replica)
        self.ends[index] = replica.next_end()

    def _begin_on(self, replica: ReplicaClock) -> None:
        replica.begin(next(self.lengths), self.begun, self.version)
        self.begun += 1

    def _begin_anywhere(self) -> None:
        """Begin as many answers as may be, each on the replica with the most room."""
        allowed = self._num_allowed()
        if allowed <= 0:
            return
        free = [(-replica.room, index) for index, replica in enumerate(self.replicas) if replica.room]
        heapify(free)
        touched = set()
        while allowed > 0 and free:
            room, index = heappop(free)
            if index not in touched:
                self.replicas[index].advance(self.now)
                touched.add(index)
            self._begin_on(self.replicas[index])
            allowed -= 1
            if room + 1 < 0:
                heappush(free, (room + 1, index))
        for index in touched:
            self.ends[index] = self.replicas[index].next_end()

    def _take(self) -> None:
        """Let the idle learner begin if the answers that it waits for have ended."""
        setup, size = self.setup, self.awaited
        if not self._has_next(size):
            return
        if setup.in_order:
            taken = [heappop(self.ready) for _ in range(size)]
        else:
            taken, self.ready = self.ready[:size], self.ready[size:]
        for _, at, version in taken:
            late = self.version - version
            self.tally.staleness += late
            self.tally.most_stale = max(self.tally.most_stale, late)
            self.tally.latency += self.now - at
        self.tally.answers_taken += size
        self.taken += size
        self.is_training = True
        self.learner_ends = self.now + setup.train_seconds * size / setup.answers

    def _has_next(self, size: int) -> bool:
        """True if the next answers in the order of beginning have ended, or if the order does not matter."""
        while self.all_ended_below in self.ended:
            self.ended.remove(self.all_ended_below)
            self.all_ended_below += 1
        return not self.setup.in_order or self.all_ended_below >= self.taken + size

    def _learner_done(self) -> None:
        """A chunk is trained; after the last one of a step its weights are pushed."""
        self.is_training, self.learner_ends = False, math.inf
        self.chunks_done += 1
        if self.chunks_done == self.setup.chunks:
            self.chunks_done, self.version = 0, self.version + 1
            self.tally.updates += 1
            self.tally.in_flight_at_updates += self.begun - self.taken
            self._push()
        self._set_limits()

    def _push(self) -> None:
        """Replicas pause while they load new weights: at once, or when their answers have ended."""
        for index, replica in enumerate(self.replicas):
            replica.advance(self.now)
            if self.setup.is_partial or not replica.ends:
                replica.stop(self.now + self.setup.push_seconds)
                self.ends[index] = replica.next_end()
            else:
                replica.is_draining = True

    def _start_tally(self) -> None:
        self.tally = _Tally(since=self.now, busy_before=self._busy())

    def _busy(self) -> float:
        for replica in self.replicas:
            replica.advance(self.now)
        return sum(replica.busy_seconds for replica in self.replicas)

    def _times(self) -> RlTimes:
        tally = self.tally
        seconds = self.now - tally.since
        return RlTimes(
            step_seconds=seconds / tally.updates,
            generating=(self._busy() - tally.busy_before) / (seconds * len(self.replicas)),
            training=tally.training_seconds / seconds,
            mean_staleness=tally.staleness / tally.answers_taken,
            max_staleness=tally.most_stale,
            in_flight=tally.in_flight_area / seconds,
            in_flight_at_updates=tally.in_flight_at_updates / tally.updates,
            latency_seconds=tally.latency / tally.answers_taken,
            answers=self.setup.answers,
        )


def simulate_rl(setup: RlSetup) -> RlTimes:
    """Step time, utilization and staleness of a setup, once they no longer change."""
    return RlSimulation(setup).run(*(SETTLED if setup.has_queue else IN_TURNS))
