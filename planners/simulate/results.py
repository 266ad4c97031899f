"""Aggregation of simulated events: percentiles, rates, curves, cost."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from l4spec.spec.scenario import Scenario, ServiceLevels
from planners.simulate.cluster import ReplicaGroup
from planners.simulate.recorder import Recorder
from planners.simulate.requests import Request
from planners.simulate.result_types import Distribution, LevelResult, ServerResult, SimulationResult, TimeSeries
from planners.simulate.servers import Server

NS = 1_000_000_000
POINTS = 240
_SECONDS_PER_HOUR = 3600
Ended = Literal["finished", "time limit", "interrupted"]


@dataclass(frozen=True, slots=True)
class Span:
    """End of a simulation (nanoseconds), its cause, and the time integral of the requests in the system."""

    end: int
    area: int
    ended: Ended


def distribution(values: Sequence[float]) -> Distribution | None:
    """Mean and percentiles of nanoseconds, in seconds; None without values. Percentiles are linear between ranks."""
    return weighted_distribution([(value, 1) for value in values])


def weighted_distribution(values: Iterable[tuple[float, int]]) -> Distribution | None:
    """As `distribution`, for values that each stand for a number of equal ones, which `statistics` cannot weigh."""
    ordered = sorted((value, weight) for value, weight in values if weight)
    if not ordered:
        return None
    ends: list[int] = []
    total, sum_of_values = 0, 0.0
    for value, weight in ordered:
        total += weight
        sum_of_values += value * weight
        ends.append(total)

    def ranked(rank: int) -> float:
        return ordered[bisect_right(ends, rank)][0]

    def percentile(share: float) -> float:
        place = share * (total - 1)
        low = int(place)
        high = min(low + 1, total - 1)
        return (ranked(low) + (ranked(high) - ranked(low)) * (place - low)) / NS

    return Distribution(
        mean=sum_of_values / total / NS,
        p50=percentile(0.5),
        p90=percentile(0.9),
        p95=percentile(0.95),
        p99=percentile(0.99),
        max=ordered[-1][0] / NS,
    )


def gaps_between_tokens(recorder: Recorder) -> Distribution | None:
    """Inter-token latency over all tokens. A run of steps counts as the mean of each quarter of its length."""
    spans: list[tuple[float, int]] = []
    for first, growth, steps, requests in zip(*recorder.gaps, strict=True):
        if steps == 1 or growth == 0:
            spans.append((first, steps * requests))
            continue
        at = 0
        for part in range(1, 5):
            end = steps * part // 4
            if end > at:
                spans.append((first + growth * (at + end - 1) / 2, (end - at) * requests))
            at = end
    return weighted_distribution(spans)


LEVELS: tuple[Literal["ttft", "tpot", "e2e"], ...] = ("ttft", "tpot", "e2e")


def is_good(request: Request, slo: ServiceLevels) -> bool:
    """True if a finished request meets every service level that is given."""
    return request.outcome == "finished" and all(_meets(request, slo, name) for name in LEVELS)


def _meets(request: Request, slo: ServiceLevels, name: str) -> bool:
    limit = getattr(slo, name)
    return limit is None or getattr(request, name) <= limit * NS


def _levels(requests: Sequence[Request], slo: ServiceLevels) -> tuple[LevelResult, ...]:
    """Share of all requests that finish within each level that is given."""
    given = [(name, float(limit)) for name in LEVELS if (limit := getattr(slo, name)) is not None]
    done = [request for request in requests if request.outcome == "finished"]
    return tuple(
        LevelResult(
            name=name, limit=limit, met=sum(_meets(request, slo, name) for request in done) / max(len(requests), 1)
        )
        for name, limit in given
    )


def curve(key: str, recorder: Recorder, numbers: range, blocks: int, end: int) -> TimeSeries:
    """The state of the servers `numbers` at `POINTS` evenly spaced times from 0 to `end`."""
    current = dict.fromkeys(numbers, (0, 0, 0))
    rows = zip(*recorder.states, strict=True)
    waiting_row = next(rows, None)
    seconds: list[float] = []
    running: list[int] = []
    waiting: list[int] = []
    used: list[float] = []
    for point in range(POINTS + 1):
        time = end * point // POINTS
        while waiting_row is not None and waiting_row[0] <= time:
            if waiting_row[1] in current:
                current[waiting_row[1]] = waiting_row[2:5]
            waiting_row = next(rows, None)
        seconds.append(time / NS)
        running.append(sum(state[0] for state in current.values()))
        waiting.append(sum(state[1] for state in current.values()))
        used.append(sum(state[2] for state in current.values()) / max(blocks, 1))
    return TimeSeries(
        key=key, seconds=tuple(seconds), running=tuple(running), waiting=tuple(waiting), cache_use=tuple(used)
    )


def server_result(server: Server, cluster: ReplicaGroup, recorder: Recorder, seconds: float) -> ServerResult:
    """Figures of one model's servers over the `seconds` of a simulation; checks of the last answers may end later."""
    ranks = [rank for replica in cluster.replicas for rank in replica.ranks]
    numbers = {replica.number for replica in cluster.replicas}
    peaks = _peaks(recorder, numbers)
    busy = sum(replica.busy_ns for replica in cluster.replicas)
    looked_up = sum(rank.looked_up_tokens for rank in ranks)
    layout = server.layout
    return ServerResult(
        key=server.key,
        model=server.model,
        gpus=server.gpus,
        num_gpus=server.num_gpus * len(cluster.replicas),
        replicas=len(cluster.replicas),
        layout=str(layout),
        engine=server.defaults.name,
        engine_version=server.defaults.version,
        blocks_per_rank=server.blocks_per_rank,
        num_ranks=server.num_caches,
        utilization=min(1.0, busy / NS / (seconds * len(cluster.replicas))),
        prefix_hit_rate=sum(rank.hit_tokens for rank in ranks) / looked_up if looked_up else 0.0,
        preemptions=sum(rank.num_preemptions for rank in ranks),
        steps=sum(replica.steps for replica in cluster.replicas),
        peak_running=peaks[0],
        peak_waiting=peaks[1],
        peak_cache_use=peaks[2] / (server.blocks_per_rank * server.num_caches),
        basis=server.basis,
    )


def _peaks(recorder: Recorder, numbers: set[int]) -> tuple[int, int, int]:
    """The most requests running and waiting, and blocks in use, at any one server."""
    running = waiting = used = 0
    for _, number, now_running, now_waiting, now_used in zip(*recorder.states, strict=True):
        if number in numbers:
            running, waiting, used = max(running, now_running), max(waiting, now_waiting), max(used, now_used)
    return running, waiting, used


def summarize(
    scenario: Scenario,
    requests: Sequence[Request],
    recorder: Recorder,
    servers: Sequence[tuple[Server, ReplicaGroup]],
    span: Span,
) -> SimulationResult:
    """The figures of a simulation that has ended."""
    done = [request for request in requests if request.outcome == "finished"]
    last = max((request.last_token_at for request in done), default=span.end)
    end = last if span.ended == "finished" else max(last, span.end)
    begin = min((request.arrival for request in requests), default=0)
    seconds = max(end - begin, 1) / NS
    good = sum(is_good(request, scenario.slo) for request in done)
    output, prompt = sum(request.output for request in done), sum(request.prompt for request in done)
    paid = [pair for pair in servers if not _on_others(scenario, pair[0].key)]
    gpus = sum(server.num_gpus * len(cluster.replicas) for server, cluster in paid)
    usd = _usd(paid, seconds)
    refused = sum(request.outcome == "refused" for request in requests)
    return SimulationResult(
        scenario=scenario.name,
        seed=scenario.seed,
        ended=span.ended,
        estimated=scenario.estimated,
        requests=len(requests),
        finished=len(done),
        refused=refused,
        cut=len(requests) - len(done) - refused,
        duration=seconds,
        ttft=distribution([request.ttft for request in done]),
        tpot=distribution([request.tpot for request in done if request.output > 1]),
        itl=gaps_between_tokens(recorder),
        e2e=distribution([request.e2e for request in done]),
        requests_per_second=len(done) / seconds,
        input_tokens_per_second=prompt / seconds,
        output_tokens_per_second=output / seconds,
        output_tokens_per_second_per_gpu=output / seconds / max(gpus, 1),
        mean_in_system=span.area / NS / seconds,
        attainment=good / len(requests) if requests else 0.0,
        goodput=good / seconds,
        levels=_levels(requests, scenario.slo),
        refused_because=tuple(dict.fromkeys(group.refusal for _, group in servers if group.refusal)),
        num_gpus=gpus,
        usd=usd,
        usd_per_million_output_tokens=usd / output * 1e6 if usd is not None and output else None,
        servers=tuple(server_result(server, cluster, recorder, seconds) for server, cluster in servers),
        curves=tuple(_curve_of(server, cluster, recorder, end) for server, cluster in servers),
    )


def _on_others(scenario: Scenario, key: str) -> bool:
    """True if a model runs on GPUs that are counted with another model."""
    return key in scenario.models and scenario.models[key].shares_gpus_with is not None


def _curve_of(server: Server, cluster: ReplicaGroup, recorder: Recorder, end: int) -> TimeSeries:
    first = cluster.replicas[0].number
    blocks = server.blocks_per_rank * server.num_caches * len(cluster.replicas)
    return curve(server.key, recorder, range(first, first + len(cluster.replicas)), blocks, end)


def _usd(servers: Sequence[tuple[Server, ReplicaGroup]], seconds: float) -> float | None:
    """Dollars of all GPUs over the time; None if a price is not given."""
    total = 0.0
    for server, cluster in servers:
        if server.usd_per_gpu_hour is None:
            return None
        total += server.usd_per_gpu_hour * server.num_gpus * len(cluster.replicas) * seconds / _SECONDS_PER_HOUR
    return total
