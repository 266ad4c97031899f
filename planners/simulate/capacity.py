"""The highest rate that a deployment sustains within its service levels, and the GPUs by hour for a trace."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from math import ceil

from pydantic import BaseModel, ConfigDict

from l4spec.errors import Problem, UserError
from l4spec.spec.scenario.references import LoadedScenario
from l4spec.spec.scenario.workload import Bursts, ClosedLoop, Constant, Gamma, Poisson, Trace
from planners.simulate.repeats import side_by_side
from planners.simulate.result_types import SimulationResult
from planners.simulate.workload.source import DEFAULT_REQUESTS
from planners.simulate.workload.traces import read_trace

PRECISION = 1.02
MOST_REQUESTS = 100_000
MOST_DOUBLINGS = 10
LIFETIMES = 20
"""Of a request, by the median: a run that is to show a steady state lasts as long."""
MOST_HOURS = 100_000
NS = 1_000_000_000
_HOUR = 3600 * NS


class ServiceCapacity(BaseModel):
    """`rate` requests per second meet the service levels, `beyond` do not; `result` is the simulation at `rate`.

    `hours` are the replicas that each hour of a trace needs at that rate for one deployment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float
    beyond: float
    attainment: float
    result: SimulationResult
    hours: tuple[int, ...] = ()


def capacity(loaded: LoadedScenario, jobs: int = 1) -> ServiceCapacity:
    """The highest rate at which `slo.attainment` of all requests meet the service levels, to 2 %.

    Rates are doubled or halved until one is sustained and one is not, then the gap is cut in `jobs` + 1 equal ratios
    at a time. Raises UserError without service levels, for arrivals without a rate, and where no rate is sustained.
    """
    slo = loaded.scenario.slo
    if slo.ttft is None and slo.tpot is None and slo.e2e is None:
        raise UserError([Problem("capacity needs a service level", path="slo", hint="as --ttft '1 s' --tpot '50 ms'")])
    low, high, result = _bracket(loaded)
    while high / low > PRECISION:
        ratio = (high / low) ** (1 / (jobs + 1))
        factors = [low * ratio ** (index + 1) for index in range(jobs)]
        for factor, tried in zip(factors, _tried(loaded, factors, jobs), strict=True):
            if not _holds(loaded, tried):
                high = factor
                break
            low, result = factor, tried
    rate = _rate(_at(loaded, low, 1.0), result)
    return ServiceCapacity(
        rate=rate,
        beyond=rate * high / low,
        attainment=result.attainment,
        result=result,
        hours=_hours(loaded, rate),
    )


def _bracket(loaded: LoadedScenario) -> tuple[float, float, SimulationResult]:
    """Factors of the scenario's rate of which the lower is sustained, with its simulation, and the upper is not."""
    results = {1.0: _tried(loaded, [1.0], 1)[0]}
    factor = 1.0
    step = 2.0 if _holds(loaded, results[1.0]) else 0.5
    for _ in range(MOST_DOUBLINGS):
        following = factor * step
        results[following] = _tried(loaded, [following], 1)[0]
        if _holds(loaded, results[following]) != (step > 1):
            low, high = sorted((factor, following))
            return low, high, results[low]
        factor = following
    what = (
        "every rate tried is sustained"
        if step > 1
        else "no rate tried is sustained: the levels are missed without load"
    )
    raise UserError([Problem(f"{what}, from the scenario's times {factor:g}", path="slo")])


def _tried(loaded: LoadedScenario, factors: Sequence[float], jobs: int) -> list[SimulationResult]:
    """Simulations with arrivals so many times as fast, each until `LIFETIMES` of a request have passed.

    In less a queue that grows without end has hardly begun to: most requests are still in time.
    """
    lengths = dict.fromkeys(factors, 1.0)
    results: dict[float, SimulationResult] = {}
    pending = list(factors)
    while pending:
        made = side_by_side([_at(loaded, factor, lengths[factor]) for factor in pending], jobs)
        results |= dict(zip(pending, made, strict=True))
        pending = [factor for factor in pending if _is_short(loaded, results[factor])]
        for factor in pending:
            lengths[factor] *= 2
    return [results[factor] for factor in factors]


def _is_short(loaded: LoadedScenario, result: SimulationResult) -> bool:
    """True if a run that meets the levels was too short to show that it stays so, and can be made longer."""
    if not _lasts_by_requests(loaded) or not _holds(loaded, result) or result.e2e is None:
        return False
    return result.requests < MOST_REQUESTS and result.duration < LIFETIMES * result.e2e.p50


def _lasts_by_requests(loaded: LoadedScenario) -> bool:
    """True if the number of requests determines the duration of the load: not for a trace, nor if seconds are given."""
    workload = loaded.scenario.workload
    return not isinstance(workload.arrivals, Trace) and workload.seconds is None


def _holds(loaded: LoadedScenario, result: SimulationResult) -> bool:
    return result.attainment >= loaded.scenario.slo.attainment


def _at(loaded: LoadedScenario, factor: float, length: float) -> LoadedScenario:
    """The scenario with arrivals `factor` times as fast, and `length` times as long; of a trace as long as it is."""
    arrivals = loaded.scenario.workload.arrivals
    if isinstance(arrivals, ClosedLoop):
        raise UserError([Problem("clients of a closed loop have no rate", path="workload.arrivals", hint="use --rate")])
    if isinstance(arrivals, Trace):
        changed: object = arrivals.model_copy(update={"speed": arrivals.speed * factor})
    elif isinstance(arrivals, Bursts):
        changed = arrivals.model_copy(update={"rates": tuple(rate * factor for rate in arrivals.rates)})
    else:
        changed = arrivals.model_copy(update={"rate": arrivals.rate * factor})
    requests = loaded.scenario.workload.requests
    if _lasts_by_requests(loaded):
        requests = min(MOST_REQUESTS, round((requests or DEFAULT_REQUESTS) * max(factor, 1.0) * length))
    workload = loaded.scenario.workload.model_copy(update={"arrivals": changed, "requests": requests})
    return replace(loaded, scenario=loaded.scenario.model_copy(update={"workload": workload}))


def _rate(loaded: LoadedScenario, result: SimulationResult) -> float:
    """Requests that arrive a second; of sessions in a trace, which wait for their answers, those that end."""
    workload = loaded.scenario.workload
    arrivals = workload.arrivals
    if isinstance(arrivals, Poisson | Gamma | Constant):
        return arrivals.rate
    if isinstance(arrivals, Bursts):
        return sum(arrivals.rates) / len(arrivals.rates)
    times = list(islice(_arrivals(loaded), result.requests))
    if not times:
        return result.requests / result.duration
    if times[-1] == times[0]:
        hint = "a trace of requests that arrive one after the other"
        raise UserError([Problem("all requests arrive at once: they have no rate", "workload.arrivals", hint=hint)])
    return (len(times) - 1) / (times[-1] - times[0]) * NS


def _arrivals(loaded: LoadedScenario) -> Iterator[int]:
    """Nanoseconds at which requests of a trace arrive, at its speed; none of sessions."""
    arrivals = loaded.scenario.workload.arrivals
    if isinstance(arrivals, Trace):
        path = loaded.file(("workload", "arrivals", "path"), arrivals.path)
        for entry in read_trace(path, arrivals.format):
            if not entry.session:
                yield round(entry.arrival / arrivals.speed)


def _hours(loaded: LoadedScenario, rate: float) -> tuple[int, ...]:
    """Copies of the deployment that each hour of a trace needs, by its mean rate."""
    counts: dict[int, int] = {}
    last = 0
    for last in _arrivals(loaded):
        counts[last // _HOUR] = counts.get(last // _HOUR, 0) + 1
    if not counts:
        return ()
    if max(counts) >= MOST_HOURS:
        message = f"the trace lasts {max(counts):,} hours, more than {MOST_HOURS:,}"
        raise UserError([Problem(message, "workload.arrivals.path", hint="check the times of its requests")])
    covered = last % _HOUR / NS
    return replicas_by_hour([counts.get(hour, 0) for hour in range(max(counts) + 1)], rate, covered)


def replicas_by_hour(requests: Sequence[int], rate: float, last_seconds: float = 3600.0) -> tuple[int, ...]:
    """ceil(arrivals / capacity) of each hour; an hour without requests needs none.

    `last_seconds` of the last hour are in the trace; they count as a minute at least where hours come before it.
    """
    least = 60.0 if len(requests) > 1 else 1.0
    lasting = [*[3600.0] * (len(requests) - 1), max(last_seconds, least)]
    return tuple(ceil(count / seconds / rate) for count, seconds in zip(requests, lasting, strict=True))
