"""One server: ranks that step together, and runs of equal decode steps taken at once."""

from dataclasses import dataclass
from math import isqrt

from planners.simulate.rank import Rank
from planners.simulate.recorder import Recorder
from planners.simulate.requests import Request
from planners.simulate.times.interface import StepBatch, StepTimes

LONGEST_RUN = 128
"""Most decode steps that are timed by their first and last: between them a step's time is taken as linear."""
_NS = 1_000_000_000


@dataclass(slots=True)
class StepRun:
    """`steps` steps from `start` on; the first takes `first` nanoseconds, each next one `growth` more."""

    start: int
    first: int
    growth: int
    steps: int

    def duration(self, steps: int) -> int:
        """Nanoseconds of the first `steps` steps."""
        return steps * self.first + self.growth * (steps * (steps - 1) // 2)

    @property
    def end(self) -> int:
        """Time at which the last step ends."""
        return self.start + self.duration(self.steps)

    def steps_reaching(self, time: int) -> int:
        """The fewest steps, at least one, after which it is `time` or later; all of them if it never is."""
        remaining = time - self.start
        if self.duration(self.steps) <= remaining:
            return self.steps
        low = max(1, min(self.steps, remaining // max(self.first + self.growth * (self.steps - 1), 1)))
        if self.growth > 0:
            b = 2 * self.first - self.growth
            low = max(low, (isqrt(max(b * b + 8 * self.growth * remaining, 0)) - b) // (2 * self.growth))
        while low > 1 and self.duration(low - 1) >= remaining:
            low -= 1
        while self.duration(low) < remaining:
            low += 1
        return low


@dataclass(slots=True)
class SharedGpus:
    """GPUs on which replicas of several models take turns, a step each."""

    busy_until: int = 0


class Replica:
    """A server with one rank, or several whose slowest sets the pace of all (data-parallel attention)."""

    def __init__(self, number: int, ranks: list[Rank], times: StepTimes, recorder: Recorder) -> None:
        self.number = number
        self.ranks = ranks
        self.pools = tuple({id(rank.pool): rank.pool for rank in ranks}.values())
        self.times = times
        self.recorder = recorder
        self.run: StepRun | None = None
        self.gpus: SharedGpus | None = None
        self.is_shown = True
        """True if users see its tokens, so that the gaps between them count; False for a guard."""
        self.version = 0
        self.ended_at = 0
        self.busy_ns = 0
        self.steps = 0

    @property
    def load(self) -> int:
        """Requests that wait or run."""
        return sum(rank.load for rank in self.ranks)

    def has_work(self) -> bool:
        """True if any request waits or runs."""
        return any(rank.has_work for rank in self.ranks)

    def is_idle(self) -> bool:
        """True if no step is under way."""
        return self.run is None

    def enqueue(self, request: Request) -> None:
        """Let a request wait at the rank with the least load (vLLM weighs a waiting one as four running ones)."""
        rank = self.ranks[0]
        if len(self.ranks) > 1:
            rank = min(self.ranks, key=lambda r: 4 * len(r.waiting) + len(r.running))
        request.server = self.number
        rank.policy.enqueue(rank, request)

    def start(self, now: int) -> int | None:
        """Plan the next steps; returns the time of their end, or None if nothing can run."""
        if self.gpus is not None:
            for rank in self.ranks:
                rank.stall(now - self.ended_at)  # others had the GPUs since then
        self._schedule(now)
        batches = [rank.batch() for rank in self.ranks]
        if not any(batch.tokens for batch in batches):
            self.run = None
            return None
        first = self._nanoseconds(batches)
        steps = 1
        if not any(rank.chunks for rank in self.ranks):
            longest = LONGEST_RUN if self.gpus is None else 1
            self._divide_room()
            steps = min(rank.steps_until_change(longest) for rank in self.ranks if rank.num_decoding)
        growth = 0
        if steps > 1:
            growth = (self._nanoseconds([_later(batch, steps - 1) for batch in batches]) - first) // (steps - 1)
        self.run = StepRun(now, first, growth, max(steps, 1))
        self.version += 1
        self._record(now)
        if self.gpus is not None:
            self.gpus.busy_until = self.run.end
        return self.run.end

    def _schedule(self, now: int) -> None:
        """Plan the step of each rank; ranks that share a pool leave free the blocks of the others' unfinished work."""
        if len(self.pools) == len(self.ranks):
            for rank in self.ranks:
                rank.policy.schedule(rank, now)
            return
        claims = [rank.policy.claims(rank) for rank in self.ranks]
        for index, rank in enumerate(self.ranks):
            sharing = (claim for other, claim in zip(self.ranks, claims, strict=True) if other.pool is rank.pool)
            rank.pool.claimed = sum(sharing) - claims[index]
            paused = rank.num_preemptions
            rank.policy.schedule(rank, now)
            if rank.chunks or rank.num_preemptions > paused:  # a step of decodes leaves its claims as they were
                claims[index] = rank.policy.claims(rank)

    def _divide_room(self) -> None:
        """Let each rank count on an equal part of its pool's room for a run of steps."""
        sharers = len(self.ranks) // len(self.pools)
        for pool in self.pools:
            pool.claimed = 0
            pool.claimed = pool.available - pool.available // sharers

    def interrupt(self, now: int) -> int | None:
        """Something arrived: end the run at the next step's end; returns when, or None if nothing changes."""
        run = self.run
        if run is None or run.steps == 1:
            return None
        steps = run.steps_reaching(now)
        if steps == run.steps:
            return None
        run.steps = steps
        self.version += 1
        return run.end

    def finish(self) -> tuple[int, list[Request], list[Request]]:
        """End the run: when, requests that got their first token, and requests that ended."""
        run = self.run
        assert run is not None
        now, duration = run.end, run.duration(run.steps)
        for pool in self.pools:
            pool.claimed = 0
        self.busy_ns += duration
        self.steps += run.steps
        first: list[Request] = []
        done: list[Request] = []
        for rank in self.ranks:
            if rank.decodes:
                rank.take_decode_blocks(run.steps)
                self._record_gaps(rank, run)
            elif rank.num_decoding:
                rank.stall(duration)
            got, ended = rank.end_step(run.steps, now)
            first += got
            done += ended
            for gap, tokens in rank.resumed:
                self._record_gap(gap, 0, 1, tokens)
            rank.resumed.clear()
        self.run = None
        self.ended_at = now
        return now, first, done

    def _nanoseconds(self, batches: list[StepBatch]) -> int:
        return max(1, round(self.times.seconds(batches) * _NS))

    def _record_gaps(self, rank: Rank, run: StepRun) -> None:
        gaps = rank.gaps(run.first)
        for gap, count in gaps:
            self._record_gap(gap, 0, 1, count)
        if run.steps > 1:
            self._record_gap(run.first + run.growth, run.growth, run.steps - 1, rank.num_decoding)

    def _record_gap(self, first: int, growth: int, steps: int, requests: int) -> None:
        if self.is_shown:
            self.recorder.gap(first, growth, steps, requests)

    def _record(self, now: int) -> None:
        running = sum(len(rank.running) for rank in self.ranks)
        waiting = sum(len(rank.waiting) for rank in self.ranks)
        used = sum(pool.used for pool in self.pools)
        self.recorder.state(now, self.number, running, waiting, used)


def _later(batch: StepBatch, steps: int) -> StepBatch:
    """The batch `steps` decode steps later."""
    return StepBatch(batch.decode, batch.context + batch.decode * steps, (), 0, batch.checked)
