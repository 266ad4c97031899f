"""Small servers with steps of fixed time, to test the mechanics without a model."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from planners.simulate.cache.law import CacheLaw
from planners.simulate.cache.pool import BlockPool
from planners.simulate.cluster import EventClock, ReplicaGroup
from planners.simulate.engines.policy import Policy, Settings
from planners.simulate.engines.vllm import VllmPolicy
from planners.simulate.rank import Rank
from planners.simulate.recorder import Recorder
from planners.simulate.replica import Replica
from planners.simulate.requests import Request
from planners.simulate.routers import RequestRouter, RoundRobin
from planners.simulate.times.interface import ConstantStepTimes, StepTimes

BY_TOKENS = CacheLaw(16)
DEFAULTS = Settings(
    order="fcfs",
    max_num_seqs=256,
    max_num_batched_tokens=512,
    chunked_prefill=True,
    prefix_caching=True,
    block_size_tokens=16,
    watermark=0.0,
    max_model_len=None,
)


class CheckedRank(Rank):
    """A rank that counts its blocks anew whenever a step is planned."""

    def batch(self):  # type: ignore[no-untyped-def]  # the parent's type
        """As the parent, with the books checked."""
        self.check()
        return super().batch()

    def check(self) -> None:
        """Every block is used, cached or free, and what sequences hold is what the pool has given out."""
        pool, tree = self.pool, self.pool.tree
        holdings = [request.holding for request in self.running.values() if request.holding is not None]
        assert pool.own == sum(holding.own for holding in holdings)
        assert all(holding.own >= 0 for holding in holdings)
        assert 0 <= pool.used <= pool.occupied <= pool.capacity
        assert 0 <= tree.num_unused <= tree.num_blocks
        for request in self.running.values():
            assert request.holding is not None
            local = request.holding.cached * pool.groups + request.holding.own
            assert (
                local >= pool.law.kept_blocks(self.computed(request)) - pool.law.pages - pool.law.groups
                or pool.law.local
            )


@dataclass
class Bench:
    """A cluster on a clock, and what became of its requests."""

    cluster: ReplicaGroup
    clock: EventClock
    recorder: Recorder
    finished_requests: list[Request] = field(default_factory=list)

    def finished(self, request: Request, now: int) -> None:
        """A request has ended."""
        self.finished_requests.append(request)

    def run(self, requests: Iterable[Request]) -> list[Request]:
        """Serve requests that arrive at their own time, to the end."""
        served = list(requests)
        for request in served:
            self.clock.at(request.arrival, self.cluster.submit, request)
        self.clock.run()
        for replica in self.cluster.replicas:
            for rank in replica.ranks:
                assert isinstance(rank, CheckedRank)
                rank.check()
                assert not rank.running
                assert not rank.waiting
                assert rank.pool.used == 0
        return served


def bench(
    *,
    blocks: int = 1000,
    law: CacheLaw = BY_TOKENS,
    times: StepTimes | None = None,
    policy: type[Policy] = VllmPolicy,
    replicas: int = 1,
    ranks: int = 1,
    router: RequestRouter | None = None,
    **settings: object,
) -> Bench:
    """Replicas behind a router; `settings` replace those of a scheduler."""
    chosen = replace(DEFAULTS, **settings)  # type: ignore[arg-type]  # names of settings
    recorder, clock = Recorder(), EventClock()
    servers = [
        Replica(
            number,
            [CheckedRank(BlockPool(blocks, law, caching=chosen.prefix_caching), policy(chosen)) for _ in range(ranks)],
            times or ConstantStepTimes(0.010, 1e-5),
            recorder,
        )
        for number in range(replicas)
    ]
    benches: list[Bench] = []

    class Forward:
        def finished(self, request: Request, now: int) -> None:
            benches[0].finished(request, now)

    made = Bench(ReplicaGroup(clock, servers, router or RoundRobin(), Forward()), clock, recorder)
    benches.append(made)
    return made


def request(number: int, arrival: float = 0.0, prompt: int = 100, output: int = 20, priority: int = 0) -> Request:
    """A request of new text that arrives at `arrival` seconds."""
    return Request(number, round(arrival * 1e9), prompt, output, tail=(number + 1) << 40, priority=priority)
