"""Request sources: open arrivals, closed-loop clients, and sessions of several turns."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from l4spec.errors import Problem, UserError
from l4spec.spec.scenario.workload import Bursts, ClosedLoop, Constant, Gamma, Length, Poisson, Workload
from planners.simulate.requests import Request
from planners.simulate.workload.draws import NS, FindFile, gaps, lengths, popularity, stream

DEFAULT_REQUESTS = 1000
IDS_PER_SEQUENCE = 1 << 40
"""Block ids that belong to one sequence of new text."""


@dataclass(slots=True)
class Contents:
    """Makes the block ids of prompts: common beginnings by number, everything else new.

    A shared beginning counts by whole blocks, as engines share it.
    """

    block: int
    _fresh: Iterator[int] = field(default_factory=lambda: count(1 << 60, IDS_PER_SEQUENCE))

    def fresh(self) -> int:
        """The first id of a new text, unlike all others."""
        return next(self._fresh)

    def with_prefix(self, request: Request, group: int, prefix: int) -> None:
        """Let a prompt begin with the first `prefix` tokens of text number `group`; its tokens count them already."""
        shared = min(prefix, request.prompt) // self.block
        rest = request.prompt // self.block - shared
        own = self.fresh()
        runs = ((group * IDS_PER_SEQUENCE, group * IDS_PER_SEQUENCE + shared), (own, own + rest))
        request.path = tuple(run for run in runs if run[1] > run[0])
        request.path_blocks = shared + rest
        request.tail = own + rest

    def continued(self, request: Request, base: int) -> None:
        """Let a prompt be the beginning of the text whose ids start at `base`, and its answer continue there."""
        blocks = request.prompt // self.block
        request.path = ((base, base + blocks),) if blocks else ()
        request.path_blocks = blocks
        request.tail = base + blocks


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """Tokens of an image: its tiles by default, and the tokens that a tile takes in the prompt."""

    tiles_per_image: int
    tokens_per_tile: int


class Source(ABC):
    """Gives requests to `submit` at their time."""

    def __init__(self, schedule: Callable[..., None], submit: Callable[[Request], None]) -> None:
        self.schedule = schedule
        self.submit = submit
        self.requests: list[Request] = []

    @abstractmethod
    def start(self) -> None:
        """Schedule the first arrivals."""

    @abstractmethod
    def finished(self, request: Request, now: int) -> None:
        """A request has ended; clients and sessions continue."""

    def _arrive(self, request: Request) -> None:
        self.requests.append(request)
        self.submit(request)


class Drawn(Source):
    """Requests with drawn lengths: open arrivals, sessions, or a closed loop."""

    def __init__(
        self,
        workload: Workload,
        seed: int,
        block: int,
        find: FindFile,
        schedule: Callable[..., None],
        submit: Callable[[Request], None],
        *,
        images: ImageTokens | None = None,
    ) -> None:
        super().__init__(schedule, submit)
        self.workload = workload
        self.images = images
        if workload.images is not None and (images is None or not images.tokens_per_tile):
            raise UserError([Problem("the model has no vision, so it takes no images", path="workload.images")])
        self.contents = Contents(block)
        self.end = None if workload.seconds is None else round(workload.seconds * NS)
        self.limit = workload.requests or (DEFAULT_REQUESTS if self.end is None else None)
        assert workload.prompt_tokens is not None and workload.output_tokens is not None, "only traces bring their own"
        self._prompts = lengths(workload.prompt_tokens, stream(seed, "prompts"), find)
        self._outputs = lengths(workload.output_tokens, stream(seed, "outputs"), find)
        self._thinks = stream(seed, "thinks")
        self._priorities = stream(seed, "priorities")
        self._images = stream(seed, "images")
        prefix = workload.prefix
        self._prefixes = None if prefix is None else lengths(prefix.tokens, stream(seed, "prefixes"), find)
        self._groups = None if prefix is None else popularity(prefix.groups, prefix.zipf, stream(seed, "groups"))
        self._prefix_of: dict[int, int] = {}
        turns: Length = 1 if workload.sessions is None else workload.sessions.turns
        self._turns = lengths(turns, stream(seed, "turns"), find)
        self._left: dict[int, tuple[int, int]] = {}
        self._numbers = count()
        self._sessions = count()
        self._seed = seed

    def start(self) -> None:
        """Schedule the first arrivals."""
        arrivals = self.workload.arrivals
        if isinstance(arrivals, ClosedLoop):
            for _ in range(arrivals.clients):
                self.schedule(0, self._open, 0)
            return
        assert isinstance(arrivals, Poisson | Gamma | Constant | Bursts), "traces have a source of their own"
        self._gaps = gaps(arrivals, stream(self._seed, "arrivals"))
        self._schedule_next(0)

    def _schedule_next(self, now: int) -> None:
        time = now + next(self._gaps)
        if (self.end is None or time < self.end) and self._more():
            self.schedule(time, self._open_and_go_on, time)

    def _more(self) -> bool:
        return self.limit is None or len(self.requests) < self.limit

    def _open_and_go_on(self, now: int) -> None:
        self._open(now)
        self._schedule_next(now)

    def _open(self, now: int) -> None:
        """The first request of a client or session."""
        if not self._more() or (self.end is not None and now >= self.end):
            return
        request = self._request(now)
        prefix = 0
        if self._prefixes is not None and self._groups is not None:
            group = next(self._groups)
            prefix = self._prefix_of.setdefault(group, next(self._prefixes))
            request.prompt += prefix
            self.contents.with_prefix(request, group, prefix)
        else:
            self.contents.continued(request, self.contents.fresh())
        turns = next(self._turns)
        if turns > 1:
            request.session = next(self._sessions)
            self._left[request.session] = (turns - 1, request.prompt + request.output)
        self._arrive(request)

    def _request(self, now: int) -> Request:
        workload = self.workload
        request = Request(next(self._numbers), now, next(self._prompts), next(self._outputs))
        if workload.high_priority:
            request.priority = 0 if self._priorities.random() < workload.high_priority else 1
        if workload.images is not None:
            whole, part = divmod(workload.images.per_request, 1)
            assert self.images is not None, "asked when it was made"
            tiles = workload.images.tiles or self.images.tiles_per_image
            request.images = (int(whole) + (self._images.random() < part)) * tiles
            request.prompt += request.images * self.images.tokens_per_tile
        return request

    def finished(self, request: Request, now: int) -> None:
        """The next turn of a session, or the client's next request."""
        arrivals = self.workload.arrivals
        if isinstance(arrivals, ClosedLoop):
            wait = self._think(arrivals.think, arrivals.think_distribution == "exponential")
            self.schedule(now + wait, self._open, now + wait)
        elif request.session in self._left:
            assert self.workload.sessions is not None, "only sessions are continued"
            wait = self._think(self.workload.sessions.think, exponential=True)
            self.schedule(now + wait, self._next_turn, request, now + wait)

    def _think(self, mean: float, exponential: bool) -> int:
        if not mean:
            return 0
        return round((self._thinks.expovariate(1 / mean) if exponential else mean) * NS)

    def _next_turn(self, last: Request, now: int) -> None:
        turns, turn = self._left.pop(last.session)
        if last.outcome != "finished" or not self._more() or (self.end is not None and now >= self.end):
            return
        request = self._request(now)
        request.session = last.session
        request.prompt += turn
        self._continue_path(request, last)
        if turns > 1:
            self._left[request.session] = (turns - 1, request.prompt + request.output)
        self._arrive(request)

    def _continue_path(self, request: Request, last: Request) -> None:
        """The conversation so far, then new text: the ids continue after the last turn's."""
        blocks = request.prompt // self.contents.block
        grown = last.tail + blocks - last.path_blocks
        if last.path and last.path[-1][1] == last.tail:
            request.path = (*last.path[:-1], (last.path[-1][0], grown))
        else:
            request.path = (*last.path, (last.tail, grown)) if grown > last.tail else last.path
        request.path_blocks = blocks
        request.tail = grown
