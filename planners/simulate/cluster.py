"""Replicas behind a router, and the heap of events that moves the clock."""

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any, Protocol

from planners.simulate.replica import Replica
from planners.simulate.requests import Request
from planners.simulate.routers import RequestRouter


class Listener(Protocol):
    """Notifications about requests as they go: for closed loops, sessions and chains."""

    def finished(self, request: Request, now: int) -> None:
        """A request has its last token, or was refused."""
        ...


class EventClock:
    """Events in order of time, and of being scheduled where times are equal."""

    def __init__(self) -> None:
        self.now = 0
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, time: int, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action` at `time`, in nanoseconds."""
        self._count += 1
        heappush(self._events, (time, self._count, action, arguments))

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Process events until none is left, or until `stop`, called now and then, returns True; then return True."""
        events, ticks = self._events, 0
        while events:
            time, _, action, arguments = heappop(events)
            self.now = time
            action(*arguments)
            ticks += 1
            if not ticks & 1023 and stop():
                return True
        return False


class ReplicaGroup:
    """Equal replicas of one model behind a router."""

    def __init__(self, clock: EventClock, replicas: list[Replica], router: RequestRouter, listener: Listener) -> None:
        self.clock = clock
        self.replicas = replicas
        self.router = router
        self.listener = listener
        self.refusal: str | None = None
        """Reason for the first refusal of a request that can never run."""

    def submit(self, request: Request) -> None:
        """Give a request that arrives now to a replica. One that can never run is refused."""
        replica = self.router.choose(request, self.replicas)
        rank = replica.ranks[0]
        reason = rank.policy.refuses(rank, request)
        if reason is not None:
            self.refusal = self.refusal or reason
            request.outcome = "refused"
            self.listener.finished(request, self.clock.now)
            return
        replica.enqueue(request)
        if replica.run is None:
            self._start(replica)
        else:
            end = replica.interrupt(self.clock.now)
            if end is not None:
                self.clock.at(end, self._end, replica, replica.version)

    def _start(self, replica: Replica) -> None:
        gpus = replica.gpus
        if gpus is not None and gpus.busy_until > self.clock.now:
            if replica.has_work():
                self.clock.at(gpus.busy_until, self._start_if_idle, replica)
            return
        end = replica.start(self.clock.now)
        if end is not None:
            self.clock.at(end, self._end, replica, replica.version)

    def _start_if_idle(self, replica: Replica) -> None:
        if replica.is_idle():
            self._start(replica)

    def _end(self, replica: Replica, version: int) -> None:
        if version != replica.version or replica.run is None:
            return
        now, _, done = replica.finish()
        for request in done:
            self.listener.finished(request, now)
        if replica.gpus is not None:
            self.clock.at(now, self._start_if_idle, replica)  # whoever waits for these GPUs goes first
        elif replica.is_idle():
            self._start(replica)

    def ranks(self) -> Iterator[Any]:
        """All ranks."""
        for replica in self.replicas:
            yield from replica.ranks
