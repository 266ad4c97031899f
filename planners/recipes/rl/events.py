"""The simulation: answers begin, end and are taken; updates end and are pushed; event by event, no time steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from planners.recipes.rl.replica_clock import Begun, ReplicaClock
from planners.recipes.rl.setup import RlSetup, RlTimes

LEARNER = -1
SETTLED = (24, 24)
"""Updates that are left out, and updates that times are means over, where a queue of answers fills: slowly."""
IN_TURNS = (2, 8)
"""The same where none fills."""


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
    """One setup as it runs."""

    setup: RlSetup
    now: float = 0.0
    version: int = 0
    begun: int = 0
    num_ended: int = 0
    taken: int = 0
    chunks_done: int = 0
    ready: list[Begun] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    all_ended_below: int = 0
    tally: _Tally = field(default_factory=_Tally)

    def __post_init__(self) -> None:
        one = self.setup
        step_seconds = [one.decode.at(sequences) for sequences in range(one.slots + 1)]
        self.replicas = [ReplicaClock(step_seconds) for _ in range(one.replicas)]
        self.events: list[tuple[float, int, int]] = []
        self.is_training = False
        self.lengths = self._lengths()

    def run(self, warm_up: int, measured: int) -> RlTimes:
        """Means over `measured` steps after `warm_up` ones."""
        self._schedule(self._begin_answers(LEARNER))
        events, replicas = self.events, self.replicas
        while self.version < warm_up + measured:
            at, who, epoch = heappop(events)
            if who != LEARNER and replicas[who].epoch != epoch:
                continue
            self._move_to(at)
            if who == LEARNER:
                changed = self._learner_done()
                if self.version == warm_up and self.chunks_done == 0:
                    self._start_tally()
            else:
                changed = self._answer_done(who)
            self._schedule(changed | self._begin_answers(who))
            self._take()
        return self._times()

    def _lengths(self) -> Iterator[int]:
        number = 0
        while True:
            yield from self.setup.lengths.draw(self.setup.answers, self.setup.seed * 1_000_003 + number)
            number += 1

    @property
    def _in_flight(self) -> int:
        return self.begun - self.taken

    def _move_to(self, at: float) -> None:
        self.tally.in_flight_area += self._in_flight * (at - self.now)
        if self.is_training:
            self.tally.training_seconds += at - self.now
        self.now = at

    def _schedule(self, changed: set[int]) -> None:
        """When the next answer ends on each of these replicas."""
        for index in changed:
            replica = self.replicas[index]
            replica.epoch += 1
            end = replica.next_end()
            if end is not None:
                heappush(self.events, (end, index, replica.epoch))

    def _answer_done(self, index: int) -> set[int]:
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
        return {index}

    def _with_room(self, last: int) -> Sequence[int]:
        """Replicas that may have room: where all others are full, `last`, whose answer ended."""
        generating = self.begun - self.num_ended
        if last != LEARNER and generating + self.replicas[last].room >= len(self.replicas) * self.setup.slots:
            return (last,)
        return range(len(self.replicas))

    def _begin_answers(self, last: int) -> set[int]:
        """As many as may be, each on the replica with the most room, after the end of one on `last`.

        Returns the replicas that got some.
        """
        setup, touched = self.setup, set[int]()
        if setup.is_colocated and self.is_training:
            return touched
        allowed = int((self.version + 1 + setup.staleness) * setup.answers) - self.begun
        if allowed <= 0:
            return touched
        possible = self._with_room(last)
        if len(possible) == 1:
            return self._fill(last, allowed)
        rooms = ((-self.replicas[index].room, index) for index in possible)
        free = sorted(one for one in rooms if one[0] < 0)
        while allowed > 0 and free:
            room, index = heappop(free)
            replica = self.replicas[index]
            if index not in touched:
                replica.advance(self.now)
                touched.add(index)
            replica.begin(next(self.lengths), self.begun, self.version)
            self.begun, allowed = self.begun + 1, allowed - 1
            if room + 1 < 0:
                heappush(free, (room + 1, index))
        return touched

    def _fill(self, index: int, allowed: int) -> set[int]:
        """Begin answers on the only replica that may have room: the usual case, an answer for one that ended."""
        replica = self.replicas[index]
        count = min(allowed, replica.room)
        if count <= 0:
            return set()
        replica.advance(self.now)
        for number in range(self.begun, self.begun + count):
            replica.begin(next(self.lengths), number, self.version)
        self.begun += count
        return {index}

    def _take(self) -> None:
        """Let the learner begin, if it is idle and has what it waits for."""
        if self.is_training:
            return
        setup, size = self.setup, self._chunk_size()
        if len(self.ready) < size or not self._has_next(size):
            return
        taken = [heappop(self.ready) for _ in range(size)] if self.setup.in_order else self.ready[:size]
        if not self.setup.in_order:
            del self.ready[:size]
        for _, at, version in taken:
            late = self.version - version
            self.tally.staleness += late
            self.tally.most_stale = max(self.tally.most_stale, late)
            self.tally.latency += self.now - at
        self.tally.answers_taken += size
        self.taken += size
        self.is_training = True
        heappush(self.events, (self.now + setup.train_seconds * size / setup.answers, LEARNER, 0))

    def _has_next(self, size: int) -> bool:
        """Whether the next answers in the order of beginning have ended, if that is how they are taken."""
        while self.all_ended_below in self.ended:
            self.ended.remove(self.all_ended_below)
            self.all_ended_below += 1
        return not self.setup.in_order or self.all_ended_below >= self.taken + size

    def _chunk_size(self) -> int:
        """Equal parts whose sizes add up to the answers of a step."""
        answers, chunks, done = self.setup.answers, self.setup.chunks, self.chunks_done
        return answers * (done + 1) // chunks - answers * done // chunks

    def _learner_done(self) -> set[int]:
        self.is_training, changed = False, set[int]()
        self.chunks_done += 1
        if self.chunks_done < self.setup.chunks:
            return changed
        self.chunks_done, self.version = 0, self.version + 1
        self.tally.updates += 1
        self.tally.in_flight_at_updates += self._in_flight
        for index, replica in enumerate(self.replicas):
            replica.advance(self.now)
            if self.setup.is_partial or not replica.ends:
                replica.stop(self.now + self.setup.push_seconds)
                changed.add(index)
            else:
                replica.is_draining = True
        return changed

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
