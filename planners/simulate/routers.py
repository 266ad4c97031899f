"""Routers: the assignment of requests to replicas."""

from typing import Protocol

from l4spec.units import ceil_div
from planners.simulate.replica import Replica
from planners.simulate.requests import Request


class RequestRouter(Protocol):
    """A rule that chooses a replica."""

    def choose(self, request: Request, replicas: list[Replica]) -> Replica:
        """The replica for a request that arrives now."""
        ...


class RoundRobin:
    """Each replica in turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: Request, replicas: list[Replica]) -> Replica:
        """The next one."""
        replica = replicas[self._next % len(replicas)]
        self._next += 1
        return replica


class LeastLoaded:
    """The replica with the fewest requests, the first of equals."""

    def choose(self, request: Request, replicas: list[Replica]) -> Replica:
        """The least loaded one."""
        return min(replicas, key=lambda replica: replica.load)


class PrefixAware:
    """The replica with the least work to come: blocks that the prompt needs and does not have there, and those in use.

    The cost of Dynamo's KV router with its default weights (lib/llm/src/kv_router/scheduler.rs, ai-dynamo/dynamo):
    overlap_weight x blocks to prefill + blocks of decoding requests, weight 1; the least cost wins, without randomness
    at temperature 0.
    """

    def choose(self, request: Request, replicas: list[Replica]) -> Replica:
        """The cheapest replica, the first of equals."""
        return min(replicas, key=lambda replica: _cost(request, replica))


def _cost(request: Request, replica: Replica) -> float:
    """Blocks."""
    best = 0
    active = sum(pool.used // pool.groups for pool in replica.pools)
    for rank in replica.ranks:
        best = max(best, rank.cached_blocks(request))
        active += sum((other.prompt + rank.block - 1) // rank.block for other in rank.waiting)
    block = replica.ranks[0].block
    return ceil_div(request.prompt, block) - best + active


ROUTERS: dict[str, type[RoundRobin] | type[LeastLoaded] | type[PrefixAware]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "prefix_aware": PrefixAware,
}
