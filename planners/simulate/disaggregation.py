"""Prefill and decode on servers of their own: a finished prompt's cache goes over a link before it is decoded."""

from collections.abc import Callable
from dataclasses import dataclass

from l4spec.sharding.layout import Layout
from planners.catalog.cluster import Cluster
from planners.counts.kv_cache import CacheRow, model_rows
from planners.device.memory import Placement
from planners.simulate.cluster import EventClock, Listener, ReplicaGroup
from planners.simulate.requests import Request

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CacheLink:
    """Transfer of a prompt's cache out of a prefill replica or into a decode replica.

    `bytes_of(tokens)` are sent at `bytes_per_second`: the part of the fullest device over its own share of the network,
    since all devices send at once; or, if a scenario gives the bandwidth between replicas, the whole cache. `other_end`
    is the link of the replica at the other end, whose devices may differ in kind and number.
    """

    bytes_of: Callable[[int], int]
    bytes_per_second: float
    other_end: "CacheLink | None" = None

    def nanoseconds(self, tokens: int) -> int:
        """Nanoseconds of the transfer of a prompt's cache, at the slower of both ends."""
        own = 0 if self.bytes_per_second == float("inf") else self.bytes_of(tokens) / self.bytes_per_second
        return max(round(own * _NS), self.other_end.nanoseconds(tokens) if self.other_end is not None else 0)


def cache_link(link: object, placement: Placement, cluster: Cluster) -> CacheLink:
    """The link of a replica whose prompts are computed apart, as a scenario gives it between two replicas.

    By default every device has its part of the network between hosts.
    """
    setting, tp = placement.setting, placement.layout.tp
    whole = model_rows(setting.graph, Layout(tp=tp), setting.kv_dtype_bytes)

    def on_device(rows: tuple[CacheRow, ...], tokens: int) -> int:
        return sum(row.count * row.bytes_per_token * row.bound.num_kept(tokens) for row in rows)

    def of_fullest(tokens: int) -> int:
        return max(on_device(rows, tokens) for _, rows in placement.stages)

    def of_replica(tokens: int) -> int:
        return tp * on_device(whole, tokens)

    if link == "infinite":
        return CacheLink(of_replica, float("inf"))
    if isinstance(link, float):
        return CacheLink(of_replica, link)
    return CacheLink(of_fullest, cluster.hardware.inter_host_bandwidth().value)


class PrefillStage:
    """Prefill replicas, and the transfer of caches to the decode replicas.

    The prefill's first token is the request's; the decode replica gets the cache of the whole prompt.
    """

    def __init__(self, clock: EventClock, link: CacheLink, listener: Listener) -> None:
        self.clock = clock
        self.link = link
        self.listener = listener
        self.prefill: ReplicaGroup | None = None
        self.decode: ReplicaGroup | None = None

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
        assert self.decode is not None, "groups are set before requests arrive"
        self.clock.at(now + self.link.nanoseconds(request.prompt), self.decode.submit, request)
