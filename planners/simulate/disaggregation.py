"""Prefill and decode on servers of their own: a finished prompt's cache goes over a link before it is decoded."""

from collections.abc import Callable
from dataclasses import dataclass

from planners.simulate.cluster import EventClock, Listener, ReplicaGroup
from planners.simulate.requests import Request

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CacheLink:
    """The link between a prefill and a decode replica, and what `tokens` tokens of cache are on one device."""

    bytes_of: Callable[[int], int]
    bytes_per_second: float

    def nanoseconds(self, tokens: int) -> int:
        """How long the cache of a prompt takes; every device sends its part to its like at once."""
        return (
            0 if self.bytes_per_second == float("inf") else round(self.bytes_of(tokens) / self.bytes_per_second * _NS)
        )


class PrefillStage:
    """What prefill replicas do with a request, and the way to the decode replicas.

    The prefill's first token is the request's; the decode replica gets the cache of the whole prompt.
    """

    def __init__(self, clock: EventClock, link: CacheLink, listener: Listener) -> None:
        self.clock = clock
        self.link = link
        self.listener = listener
        self.prefill: ReplicaGroup | None = None
        self.decode: ReplicaGroup | None = None
        self.sent_bytes = 0

    def submit(self, request: Request) -> None:
        """A request arrives: its prompt is computed first."""
        assert self.prefill is not None, "groups are set before requests arrive"
        part = Request(request.number, request.arrival, request.prompt, 1, request.path, request.path_blocks)
        part.tail, part.priority, part.images, part.tag = request.tail, request.priority, request.images, request
        self.prefill.submit(part)

    def finished(self, part: Request, now: int) -> None:
        """A prompt is computed: send its cache, or end the request if one token was all."""
        request = part.tag
        request.scheduled_at, request.cached_tokens = part.scheduled_at, part.cached_tokens
        if part.outcome == "refused":
            request.outcome = "refused"
            self.listener.finished(request, now)
            return
        request.first_token_at, request.generated = part.first_token_at, 1
        if request.output == 1:
            request.last_token_at, request.outcome = now, "finished"
            self.listener.finished(request, now)
            return
        request.transferred = True
        self.sent_bytes += self.link.bytes_of(request.prompt)
        assert self.decode is not None, "groups are set before requests arrive"
        self.clock.at(now + self.link.nanoseconds(request.prompt), self.decode.submit, request)
