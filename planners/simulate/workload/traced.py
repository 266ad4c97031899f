"""Requests of a trace at their own times, or sessions of a trace that wait for their answers."""

from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from math import inf

from l4spec.errors import Problem, UserError
from l4spec.spec.scenario.workload import Trace, Workload
from planners.simulate.requests import Request
from planners.simulate.workload.draws import NS, stream
from planners.simulate.workload.source import Contents, Source
from planners.simulate.workload.traces import TraceEntry


def sent(entries: Iterator[TraceEntry], workload: Workload) -> Iterator[TraceEntry]:
    """The entries of a trace that a workload sends: the first `requests` of them, and those before its `seconds`.

    Sessions, whose arrivals follow from answers, have no times to cut. Raises UserError if no entry is left.
    """
    assert isinstance(workload.arrivals, Trace), "other arrivals have no entries"
    end = inf if workload.seconds is None else round(workload.seconds * NS)
    is_any = False
    for entry in islice(entries, workload.requests):
        if not entry.session and round(entry.arrival / workload.arrivals.speed) >= end:
            break
        is_any = True
        yield entry
    if not is_any:
        raise UserError([Problem("the trace holds no request", path="workload.arrivals.path")])


class Traced(Source):
    """Gives the entries of a trace to `submit`: one read ahead where they have times, session by session else.

    The workload's `requests` end it, or its `seconds`.
    """

    def __init__(
        self,
        entries: Iterator[TraceEntry],
        workload: Workload,
        block: int,
        schedule: Callable[..., None],
        submit: Callable[[Request], None],
        seed: int,
    ) -> None:
        super().__init__(schedule, submit)
        assert isinstance(workload.arrivals, Trace), "other arrivals have a source of their own"
        self.entries = entries
        self.arrivals = workload.arrivals
        self.contents = Contents(block)
        self.limit = workload.requests
        self.end = inf if workload.seconds is None else round(workload.seconds * NS)
        self.high_priority = workload.high_priority
        self._priorities = stream(seed, "priorities")
        self._numbers = count()
        self._clock = 0
        self._sessions: Iterator[list[TraceEntry]] = iter(())
        self._waiting: dict[int, dict[int, list[TraceEntry]]] = {}
        self._open: dict[int, int] = {}
        self._session_numbers = count()

    def start(self) -> None:
        """Schedule the first arrivals, or open the first sessions."""
        first = next(self.entries, None)
        if first is None:
            raise UserError([Problem("the trace holds no request", path="workload.arrivals.path")])
        self.entries = chain([first], self.entries)
        if first.session:
            self._sessions = _by_session(self.entries)
            at_once = self.arrivals.sessions_at_once
            opened = 0
            while (at_once is None or opened < at_once) and self._open_session(0):
                opened += 1
        else:
            self._schedule_next()

    def _schedule_next(self) -> None:
        entry = next(self.entries, None)
        if entry is None or (self.limit is not None and len(self.requests) >= self.limit):
            return
        self._clock = max(self._clock, round(entry.arrival / self.arrivals.speed))
        if self._clock < self.end:
            self.schedule(self._clock, self._arrive_entry, entry, self._clock, -1)

    def _arrive_entry(self, entry: TraceEntry, now: int, session: int) -> None:
        if now >= self.end or (self.limit is not None and len(self.requests) >= self.limit):
            return
        request = Request(next(self._numbers), now, entry.prompt, entry.output, session=session)
        request.tag = entry.position
        if self.high_priority:
            request.priority = 0 if self._priorities.random() < self.high_priority else 1
        self._set_path(request, entry)
        self._arrive(request)
        if session < 0:
            self._schedule_next()

    def _set_path(self, request: Request, entry: TraceEntry) -> None:
        """Blocks of the engine for the hashed blocks of the trace; tokens without a hash are new."""
        block, size = self.contents.block, entry.hash_tokens
        own = self.contents.fresh()
        if not entry.runs or size % block:
            if entry.runs:
                hint = f"a block size that divides {size}, as --set scheduler.block_size_tokens=16"
                raise UserError([Problem(f"the trace's hashes are of {size} tokens, blocks of {block}", hint=hint)])
            request.tail = own
            return
        per, left = size // block, request.prompt // block
        runs: list[tuple[int, int]] = []
        for start, stop in entry.runs:
            take = min((stop - start) * per, left)
            if take <= 0:
                break
            runs.append((start * per, start * per + take))
            left -= take
        request.path = tuple(runs)
        request.path_blocks = request.prompt // block - left
        request.tail = own

    def _open_session(self, now: int) -> bool:
        entries = next(self._sessions, None)
        if entries is None:
            return False
        number = next(self._session_numbers)
        followers: dict[int, list[TraceEntry]] = {}
        for entry in entries:
            if entry.after is not None:
                followers.setdefault(entry.after, []).append(entry)
        self._waiting[number], self._open[number] = followers, 0
        for entry in entries:
            if entry.after is None:
                self._follow(number, entry, now)
        return True

    def _follow(self, session: int, entry: TraceEntry, now: int) -> None:
        self._open[session] += 1
        time = now + round(entry.think / self.arrivals.speed)
        self.schedule(time, self._arrive_entry, entry, time, session)

    def finished(self, request: Request, now: int) -> None:
        """Send the next request of the session; after its last one, begin the next session."""
        session = request.session
        if session not in self._open:
            return
        self._open[session] -= 1
        for entry in self._waiting[session].pop(int(request.tag), ()):
            self._follow(session, entry, now)
        if not self._open[session]:
            del self._open[session], self._waiting[session]
            if self.arrivals.sessions_at_once is not None:
                self._open_session(now)


def _by_session(entries: Iterator[TraceEntry]) -> Iterator[list[TraceEntry]]:
    """Entries of one session after another, as the file has them together."""
    current: list[TraceEntry] = []
    for entry in entries:
        if current and entry.session != current[0].session:
            yield current
            current = []
        current.append(entry)
    if current:
        yield current
