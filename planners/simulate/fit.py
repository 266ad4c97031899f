"""`--fit`: an engine's factors from a user's own run, so that simulated times equal the measured ones.

The run's requests are served again with other factors until the first `num_fitted` of them fit best:

    cost = mean of log(simulated / measured)^2 over end-to-end latency and, at half weight, time to first token
           + WEIGHT x sum of (log(factor / prior) / spread)^2

The prior is the engine's published fit, its spreads those of that fit. Factors that a run does not determine keep their
prior values, and are named. Requests of one model have one constant, `request`: its prior is that of dense models, and
`moe_request` is 0. All arrivals and lengths of the run are used, only the first requests' latencies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import fmean, median

from l4spec.errors import Problem, UserError
from l4spec.progress import Progress
from planners.evidence.terms import SERVING
from planners.latency_types import LatencyError
from planners.simulate.requests import Request
from planners.simulate.run import Simulation
from planners.simulate.times.planned import PlannedTimes
from planners.simulate.workload.traces import TraceEntry
from planners.timing.efficiency import ServingEfficiency

DEFAULT_FITTED = 100
WEIGHT = 0.0005
"""Of the prior: a factor that moves the error by less than a tenth of a percent stays where it was."""
EVALUATIONS = 480
"""Runs that a fit simulates at most. Simulated latencies jump where the schedule changes, so no derivative is used."""
FIRST_STEPS = (-0.7, 0.5, -0.2)
"""Of the simplex of each start, in logarithms of a factor."""
LEAST_EFFECT = 0.01
_TERMS = {term.name: term for term in SERVING}
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of simulated requests: mean absolute of end to end, median absolute of time to first token."""

    e2e: float
    e2e_bias: float
    ttft: float
    requests: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted factors, their errors on the requests of the fit and on others, and the undetermined factors."""

    factors: ServingEfficiency
    seen: Errors
    unseen: Errors | None
    undetermined: tuple[str, ...]
    prior: ServingEfficiency


def fit(
    simulation: Simulation,
    entries: Sequence[TraceEntry],
    *,
    source: str,
    num_fitted: int = DEFAULT_FITTED,
    progress: Progress | None = None,
) -> Fit:
    """Factors with which `simulation` serves the first requests of a run as it was measured.

    Raises UserError where the run has no measured latencies, or the times do not come from a spec.
    """
    measured = [entry.measured for entry in entries]
    if len(entries) < 2 or any(pair is None for pair in measured):
        raise UserError("the run has no measured latencies", hint="a file of requests, or `--save-detailed` of vLLM")
    (key,) = simulation.servers
    times = simulation.servers[key].times
    if not isinstance(times, PlannedTimes):
        raise UserError([Problem("only times from a spec have factors", path="times", hint="leave `times` out")])
    prior, fields = times.factors.model_copy(update={"moe_request": 0.0}), _fields(times)
    served = _Served(simulation, key, times, [pair for pair in measured if pair is not None])
    asked = 0

    def cost(point: Sequence[float]) -> float:
        nonlocal asked
        asked += 1
        if progress is not None:
            progress(asked, EVALUATIONS)
        error = served.cost(_moved(prior, fields, point), num_fitted)
        return error + WEIGHT * sum((x / _TERMS[name].spread) ** 2 for name, x in zip(fields, point, strict=True))

    best = _minimum(cost, len(fields))
    fitted = _moved(prior, fields, best)
    requests = served.run(fitted)
    seen = served.errors(requests, range(min(num_fitted, len(requests))))
    rest = range(num_fitted, len(requests))
    unseen = served.errors(requests, rest) if rest else None
    undetermined = _undetermined(served, fitted, fields, num_fitted)
    return Fit(_described(fitted, times, source, seen, undetermined), seen, unseen, undetermined, prior)


def _minimum(cost: Callable[[Sequence[float]], float], dims: int) -> tuple[float, ...]:
    """The point of least cost that scipy's Nelder-Mead finds from 0, and again from the best so far.

    A simplex that has shrunk onto a ridge is stuck there: each start gets a fresh one, the first towards smaller
    factors. Raises UserError without scipy.
    """
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise UserError([Problem("fitting needs scipy", hint="pip install 'l4spec[fit]'")]) from None
    best = [0.0] * dims
    for step in FIRST_STEPS:
        simplex = [[x + step * (axis == corner) for axis, x in enumerate(best)] for corner in (*range(dims), dims)]
        options = {"initial_simplex": simplex, "maxfev": EVALUATIONS // len(FIRST_STEPS), "xatol": 1e-3, "fatol": 1e-6}
        best = [float(x) for x in minimize(cost, best, method="Nelder-Mead", options=options).x]
    return tuple(best)


class _Served:
    """The run, served again and again."""

    def __init__(
        self,
        simulation: Simulation,
        key: str,
        times: PlannedTimes,
        measured: Sequence[tuple[int, int]],
    ) -> None:
        self.simulation, self.key, self.times, self.measured = simulation, key, times, measured

    def run(self, factors: ServingEfficiency) -> Sequence[Request]:
        """The requests with other factors, in the order of the run."""
        outcome = self.simulation.with_times(self.key, self.times.with_factors(factors)).run()
        return sorted(outcome.requests, key=lambda request: request.number)

    def cost(self, factors: ServingEfficiency, num_fitted: int) -> float:
        """The mean squared logarithmic error of the first requests."""
        squares = []
        for request, (ttft, e2e) in zip(self.run(factors)[:num_fitted], self.measured, strict=False):
            if request.outcome == "finished":
                squares.append(log(request.e2e / e2e) ** 2 + 0.5 * log(request.ttft / ttft) ** 2)
        return fmean(squares) if squares else float("inf")

    def errors(self, requests: Sequence[Request], which: range) -> Errors:
        """Relative errors of some of the requests."""
        e2e, ttft = [], []
        for index in which:
            request, (first, last) = requests[index], self.measured[index]
            if request.outcome == "finished":
                e2e.append(request.e2e / last - 1)
                ttft.append(abs(request.ttft / first - 1))
        return Errors(fmean(map(abs, e2e)), fmean(e2e), median(ttft), len(e2e))


def _fields(times: PlannedTimes) -> tuple[str, ...]:
    """The factors that play a part in this deployment. For one model, `request` includes `moe_request`."""
    layout, routed = times.model.layout, any(kind.num_experts for kind in times.model.kinds)
    acting = {"always", "routed" if routed else "dense", *(["ranks"] if layout.tp * layout.ep > 1 else [])}
    terms = (term for term in SERVING if term.when in acting and term.name != "moe_request")
    return tuple(term.name for term in sorted(terms, key=lambda term: term.when == "ranks"))


def _moved(prior: ServingEfficiency, fields: Sequence[str], point: Sequence[float]) -> ServingEfficiency:
    """The prior with factors multiplied by the exponentials of `point`, each within the limits of its term."""
    values = {}
    for name, x in zip(fields, point, strict=True):
        value = getattr(prior, name) * exp(max(-5.0, min(5.0, x)))
        values[name] = min(value, _TERMS[name].most)
    return prior.model_copy(update=values)


def _undetermined(
    served: _Served, fitted: ServingEfficiency, fields: Sequence[str], num_fitted: int
) -> tuple[str, ...]:
    """Factors whose change by a fifth moves neither latency of the first requests by a percent on average."""
    before = served.run(fitted)[:num_fitted]
    silent = []
    for name in fields:
        after = served.run(_moved(fitted, (name,), (-log(1.2),)))[:num_fitted]
        pairs = [pair for pair in zip(before, after, strict=True) if {each.outcome for each in pair} == {"finished"}]
        ends = (abs(log(b.e2e / a.e2e)) for a, b in pairs)
        firsts = (abs(log(b.ttft / a.ttft)) for a, b in pairs)
        if not pairs or max(fmean(ends), fmean(firsts)) < LEAST_EFFECT:
            silent.append(name)
    return tuple(silent)


def _described(
    fitted: ServingEfficiency, times: PlannedTimes, source: str, seen: Errors, undetermined: Sequence[str]
) -> ServingEfficiency:
    """The factors as a catalogue entry with their source."""
    model = times.model
    notes = [f"prior: {times.factors.name} ({times.factors.source})"]
    if undetermined:
        notes.append(f"not determined by this run, left near the prior: {', '.join(undetermined)}")
    return fitted.model_copy(
        update={
            "name": "fitted",
            "aliases": (),
            "description": f"factors of {times.factors.name} fitted on {seen.requests} requests of one run",
            "source": f"l4spec simulate --fit {source}",
            "hardware": (model.machine.hardware.name,),
            "models": (model.graph.name,),
            "standard_errors": {},
            "undetermined": tuple(undetermined),
            "notes": tuple(notes),
            "errors": (
                LatencyError(metric="e2e", median=seen.e2e, p90=seen.e2e, num_rows=seen.requests, num_sources=1),
                LatencyError(metric="ttft", median=seen.ttft, p90=seen.ttft, num_rows=seen.requests, num_sources=1),
            ),
        }
    )
