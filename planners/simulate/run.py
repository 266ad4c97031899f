"""`simulate`: a scenario from its first arrival to its last token."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

from l4spec.errors import Problem, UserError
from l4spec.progress import Progress
from l4spec.spec.scenario.references import LoadedScenario
from l4spec.spec.scenario.workload import Trace
from planners.simulate.chain import StageChain, comes_at_once
from planners.simulate.cluster import EventClock, Listener, ReplicaGroup
from planners.simulate.disaggregation import PrefillStage
from planners.simulate.planning import PREFILL, planned_servers
from planners.simulate.recorder import Recorder
from planners.simulate.replica import SharedGpus
from planners.simulate.requests import Request
from planners.simulate.result_types import SimulationResult
from planners.simulate.results import Ended, Span, summarize
from planners.simulate.routers import ROUTERS
from planners.simulate.servers import Server
from planners.simulate.times.interface import StepTimes
from planners.simulate.workload.source import Drawn, ImageTokens, Source
from planners.simulate.workload.traced import Traced
from planners.simulate.workload.traces import read_trace

MOST_RANKS = 10_000
"""Each is a scheduler and a cache in memory, and is looked at for every request."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A simulation's figures and its requests, one by one."""

    result: SimulationResult
    requests: tuple[Request, ...]


class Simulation:
    """A scenario ready to run: servers planned, nothing arrived yet."""

    def __init__(self, loaded: LoadedScenario, servers: dict[str, Server] | None = None) -> None:
        self.loaded = loaded
        self.scenario = loaded.scenario
        self.servers = planned_servers(loaded) if servers is None else servers
        self.clock = EventClock()
        self.recorder = Recorder()
        self.clusters: dict[str, ReplicaGroup] = {}
        self.num_finished = 0
        self.in_system = 0
        self.area = 0
        self._last = 0
        self.entrances: dict[str, Callable[[Request], None]] = {}
        self._shared: dict[tuple[str, int], SharedGpus] = {}
        self.chain: StageChain | None = None
        listener: Listener = self
        if self.scenario.chain:
            sizes = {key: server.law.block_size for key, server in self.servers.items()}
            self.chain = StageChain(self.scenario.chain, self.entrances, self.clock, self, self.scenario.seed, sizes)
            listener = self.chain
        for key in self.scenario.models:
            self._open(key, listener)
        self.source = self._source()

    def _open(self, key: str, listener: Listener) -> None:
        """The replicas of a model, those of its prefills, and how requests get in: through its front end."""
        model = self.scenario.models[key]
        decode = self._group(key, model.replicas, model.router, listener)
        submit = decode.submit
        if model.disaggregated is not None:
            link = self.servers[key].cache_link
            assert link is not None, "disaggregated servers have a link"
            stage = PrefillStage(self.clock, link, listener)
            stage.decode = decode
            stage.prefill = self._group(key + PREFILL, model.disaggregated.prefill_replicas, model.router, stage)
            submit = stage.submit
        delay = round(self.servers[key].times.request_seconds * 1e9)
        self.entrances[key] = lambda request: self.clock.at(self.clock.now + delay, submit, request)

    def _group(self, key: str, count: int, router: str, listener: Listener) -> ReplicaGroup:
        first = sum(len(group.replicas) for group in self.clusters.values())
        num_ranks = count * self.servers[key].num_ranks
        if num_ranks > MOST_RANKS:
            message = f"at most {MOST_RANKS:,} ranks with a cache of their own are simulated, found {num_ranks:,}"
            hint = "fewer replicas (or dp), with their share of the load"
            raise UserError([Problem(message, f"models.{key}.replicas", hint=hint)])
        replicas = [self.servers[key].replica(first + index, self.recorder) for index in range(count)]
        for replica in replicas:
            replica.is_shown = key == self.scenario.answering and not comes_at_once(self.scenario.chain)
        root = self.scenario.models[key].shares_gpus_with or key if key in self.scenario.models else key
        if any(model.shares_gpus_with == root for model in self.scenario.models.values()):
            for index, replica in enumerate(replicas):
                replica.gpus = self._shared.setdefault((root, index), SharedGpus())
        self.clusters[key] = ReplicaGroup(self.clock, replicas, ROUTERS[router](), listener)
        return self.clusters[key]

    def with_times(self, key: str, times: StepTimes) -> "Simulation":
        """The same scenario before anything arrived, one model's steps timed by something else."""
        return Simulation(self.loaded, {**self.servers, key: replace(self.servers[key], times=times)})

    def run(self, *, time_limit: float | None = None, progress: Progress | None = None) -> Outcome:
        """Run to the end, or for `time_limit` seconds of real time. Ctrl-C ends it too; completed requests count."""
        began = monotonic()
        ended: Ended = "finished"

        def stop() -> bool:
            if progress is not None:
                progress(self.num_finished, self.scenario.workload.requests or len(self.source.requests))
            return time_limit is not None and monotonic() - began > time_limit

        self.source.start()
        try:
            if self.clock.run(stop):
                ended = "time limit"
        except KeyboardInterrupt:
            ended = "interrupted"
        return self._outcome(ended)

    def _outcome(self, ended: Ended) -> Outcome:
        requests = self.source.requests
        for request in requests:
            if request.outcome == "waiting":
                request.outcome = "refused" if ended == "finished" else "cut"
        if ended == "finished":
            self._explain_who_still_waits()
        pairs = [(server, self.clusters[key]) for key, server in self.servers.items()]
        self._check_that_any_can_run()
        result = summarize(self.scenario, requests, self.recorder, pairs, Span(self._last, self.area, ended))
        return Outcome(result, tuple(requests))

    def _explain_who_still_waits(self) -> None:
        """Nothing happens any more: whoever waits needs more blocks at a time than its cache has."""
        for group in self.clusters.values():
            ranks = [rank for replica in group.replicas for rank in replica.ranks]
            if group.refusal is None and any(rank.waiting or rank.running for rank in ranks):
                blocks = ranks[0].pool.capacity
                group.refusal = f"a prompt needs more blocks while it is computed than the cache has ({blocks:,})"

    def _check_that_any_can_run(self) -> None:
        """Raise UserError where every request was too long for a server: that is no load."""
        requests = self.source.requests
        reasons = [group.refusal for group in self.clusters.values() if group.refusal is not None]
        if requests and reasons and all(request.outcome == "refused" for request in requests):
            message = f"no request can be served: {reasons[0]}"
            raise UserError([Problem(message, path="workload", hint="shorter requests, or GPUs with more memory")])

    def submit(self, request: Request) -> None:
        """A request arrives at the model that answers, through its front end."""
        self._count(+1)
        if self.chain is not None:
            self.chain.submit(request)
        else:
            self.entrances[self.scenario.answering](request)

    def finished(self, request: Request, now: int) -> None:
        """A request has ended."""
        self.num_finished += 1
        self._count(-1, now)
        self.source.finished(request, now)

    def _count(self, change: int, now: int | None = None) -> None:
        """Integrate the number of requests in the system over time, for Little's law."""
        time = self.clock.now if now is None else now
        self.area += self.in_system * (time - self._last)
        self.in_system += change
        self._last = time

    def _source(self) -> Source:
        block = self.servers[self.scenario.answering].law.block_size
        find = partial(self.loaded.file, ("workload",))
        workload = self.scenario.workload
        if isinstance(workload.arrivals, Trace):
            path = self.loaded.file(("workload", "arrivals", "path"), workload.arrivals.path)
            entries = read_trace(path, workload.arrivals.format)
            seed = self.scenario.seed
            return Traced(entries, workload, block, self.clock.at, self.submit, seed)
        server = self.servers[self.scenario.answering]
        images = ImageTokens(server.tiles_per_image, server.tokens_per_tile)
        return Drawn(workload, self.scenario.seed, block, find, self.clock.at, self.submit, images=images)


def simulate(
    loaded: LoadedScenario, *, time_limit: float | None = None, progress: Progress | None = None
) -> SimulationResult:
    """Simulate a scenario's load. Raises UserError for what cannot be planned or timed."""
    return Simulation(loaded).run(time_limit=time_limit, progress=progress).result
