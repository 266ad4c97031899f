"""`simulate`: a scenario from its first arrival to its last token."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

from l4spec.errors import Problem, UserError
from l4spec.graph.build import build_graph
from l4spec.spec.parse import place_of
from l4spec.spec.resolve import resolve
from l4spec.spec.scenario.references import LoadedScenario
from l4spec.spec.scenario.workload import Trace
from planners.simulate.cluster import EventClock, ReplicaGroup
from planners.simulate.recorder import Recorder
from planners.simulate.requests import Request
from planners.simulate.result_types import SimulationResult
from planners.simulate.results import Ended, Span, summarize
from planners.simulate.routers import ROUTERS
from planners.simulate.servers import Server, server_of
from planners.simulate.times.interface import StepTimes
from planners.simulate.workload.source import Drawn, Source
from planners.simulate.workload.traced import Traced
from planners.simulate.workload.traces import read_trace

Progress = Callable[[int, int], None]
"""Called with the number of requests that have ended, and of how many."""


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
        number = 0
        for key, server in self.servers.items():
            model = self.scenario.models[key]
            count = model.replicas
            replicas = [server.replica(number + index, self.recorder) for index in range(count)]
            number += count
            self.clusters[key] = ReplicaGroup(self.clock, replicas, ROUTERS[model.router](), self)
        self.source = self._source()

    def use_times(self, key: str, times: StepTimes) -> None:
        """Time a model's steps by something else, before anything runs."""
        self.servers = {**self.servers, key: replace(self.servers[key], times=times)}
        for replica in self.clusters[key].replicas:
            replica.times = times

    def run(self, *, time_limit: float | None = None, progress: Progress | None = None) -> Outcome:
        """Run to the end, or for `time_limit` seconds of real time. Ctrl-C ends it too; what is done counts."""
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
                request.outcome = "cut"
        pairs = [(server, self.clusters[key]) for key, server in self.servers.items()]
        result = summarize(self.scenario, requests, self.recorder, pairs, Span(self._last, self.area, ended))
        return Outcome(result, tuple(requests))

    def submit(self, request: Request) -> None:
        """A request arrives at the model that answers, through its front end."""
        self._count(+1)
        key = self.scenario.answering
        delay = round(self.servers[key].times.request_seconds * 1e9)
        self.clock.at(self.clock.now + delay, self.clusters[key].submit, request)

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
            return Traced(entries, workload.arrivals, block, self.clock.at, self.submit, workload.requests)
        return Drawn(self.scenario.workload, self.scenario.seed, block, find, self.clock.at, self.submit)


def planned_servers(loaded: LoadedScenario) -> dict[str, Server]:
    """A server of each model of a scenario. Raises UserError with what cannot be planned."""
    servers: dict[str, Server] = {}
    problems: list[Problem] = []
    for key, model in loaded.scenario.models.items():
        graph = build_graph(resolve(loaded.models[key]))
        find = partial(loaded.file, ("models", key, "times", "path"), prefix=True)
        try:
            servers[key] = server_of(key, graph, model, loaded.scenario.scheduler, find)
        except UserError as error:
            problems += [_placed(problem, loaded, key) for problem in error.problems]
    if problems:
        raise UserError(problems)
    return servers


def _placed(problem: Problem, loaded: LoadedScenario, key: str) -> Problem:
    """The problem with the place of the field of a model that it is about."""
    field = problem.path.removeprefix(f"models.{key}").lstrip(".")
    path = ("models", key, field) if field else ("models", key)
    return problem if problem.place is not None else replace(problem, place=place_of(loaded.document, path))


def simulate(
    loaded: LoadedScenario, *, time_limit: float | None = None, progress: Progress | None = None
) -> SimulationResult:
    """What becomes of a scenario's load. Raises UserError for what cannot be planned or timed."""
    return Simulation(loaded).run(time_limit=time_limit, progress=progress).result
