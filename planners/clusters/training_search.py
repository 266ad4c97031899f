"""The search for a cluster that trains in time: hardware x numbers of GPUs x formats of matmuls, each as planned best.

Nothing is sampled: a cluster is planned, or ruled out by proof. It cannot hold weights, gradients and optimizer states
even when all of its devices share them, or it misses the deadline even at the peak of its data sheet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.progress import Progress
from planners.catalog.cluster import resized
from planners.clusters.training_search_types import LostTraining, RankedTraining, TrainingSearchAnswer
from planners.counts.flops import count_flops
from planners.counts.params import count_params
from planners.device.training_state import OPTIMIZER_BYTES, PEAKS, RUN, WEIGHT_BYTES
from planners.plan import plan
from planners.plan_types import Plan
from planners.request import PlanRequest
from planners.request_checks import check
from planners.search.pools import Pool, pools_of
from planners.search.search_request import SearchRequest
from planners.search.search_types import Limit, Loosening, SpaceSize
from planners.timing.efficiency import training_efficiency
from planners.timing.machine import Machine

_SECONDS_PER_DAY = 86_400
_SECONDS_PER_HOUR = 3600
_MOST_TRIED = 4
"""Candidates planned to tell which deadline would do, where every one was ruled out by its bound."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """GPUs of a pool and the format of matmuls."""

    pool: Pool
    num_gpus: int
    precision: str

    def lost(self, limit: Limit, why: str) -> LostTraining:
        return LostTraining(
            hardware=self.pool.cluster.hardware.name,
            num_gpus=self.num_gpus,
            precision=self.precision,
            bound_by=limit,
            why=why,
        )


@dataclass(frozen=True, slots=True)
class _Planned:
    """A candidate that fits and is timed. `usd` of the whole run is infinite without a price, so that it ranks last."""

    candidate: _Candidate
    plan: Plan
    request: PlanRequest
    seconds: float
    usd: float
    usd_per_hour: float

    @property
    def order(self) -> tuple[float, float, int, str, str]:
        """The cheapest first, then the soonest, then fewer GPUs, then by name."""
        candidate = self.candidate
        name = candidate.pool.cluster.hardware.name
        return self.usd, self.seconds, candidate.num_gpus, name, candidate.precision


def search_training(
    graph: LayerGraph, request: SearchRequest, *, progress: Progress | None = None
) -> TrainingSearchAnswer:
    """Rank every cluster that trains the model on `train_tokens` by the deadline, the cheapest first.

    `progress` is called with the numbers of candidates, done and in all. Raises UserError for unknown names and for
    invalid requests.
    """
    request.check_level()
    pools = pools_of(request)
    candidates = [*_candidates(pools, request)]
    check(_request(candidates[0], request), graph)
    planned, lost, pruned = list[_Planned](), list[LostTraining](), 0
    for number, candidate in enumerate(candidates, 1):
        ruled_out = _ruled_out(graph, candidate, request)
        answer = ruled_out or _planned(graph, candidate, request)
        if isinstance(answer, LostTraining):
            lost.append(answer)
            pruned += ruled_out is not None
        else:
            planned.append(answer)
        if progress is not None:
            progress(number, len(candidates))
    meeting = sorted((each for each in planned if not _missed(each, request)), key=lambda each: each.order)
    lost += [_too_late(each, request) for each in planned if _missed(each, request)]
    return TrainingSearchAnswer(
        model=graph.name,
        request=request.echo(),
        space=SpaceSize(candidates=len(candidates), pruned=pruned, timed=len(planned)),
        num_meeting=len(meeting),
        ranked=tuple(_ranked(meeting)),
        losers=tuple(lost),
        loosen=() if meeting else _loosen(graph, planned, lost, candidates, request),
        errors=tuple(meeting[0].plan.latency.errors) if meeting and meeting[0].plan.latency else (),
        prices=tuple(f"{pool.cluster.hardware.name}: {pool.source or 'no list price known'}" for pool in pools),
    )


def _candidates(pools: list[Pool], request: SearchRequest) -> Iterator[_Candidate]:
    precisions = (request.precision,) if "precision" in request.model_fields_set else RUN
    for pool in pools:
        for num_gpus in pool.sizes:
            for precision in precisions:
                yield _Candidate(pool, num_gpus, precision)


def _ruled_out(graph: LayerGraph, candidate: _Candidate, request: SearchRequest) -> LostTraining | None:
    """The proof that a candidate cannot do; None if there is none."""
    cluster = resized(candidate.pool.cluster, candidate.num_gpus)
    hardware = cluster.hardware
    factors = training_efficiency(hardware.name)
    peak_dtype = PEAKS[candidate.precision]
    fitted_as = peak_dtype if candidate.precision == "nvfp4" else candidate.precision
    if factors is None or fitted_as not in factors.matmul:
        why = f"no published training runs in {candidate.precision} on {hardware.name} are fitted"
        return candidate.lost("no_time", why)
    per_parameter = WEIGHT_BYTES + request.gradient_bytes + OPTIMIZER_BYTES[request.optimizer]
    state, room = count_params(graph).total * per_parameter, hardware.usable.num_bytes * candidate.num_gpus
    if state > room:
        gib = 1 << 30
        why = f"weights, gradients and states take {state / gib:,.0f} GiB, all devices have {room / gib:,.0f} GiB"
        return candidate.lost("memory", why)
    peak = Machine(hardware, cluster.gpus_per_host).peak(peak_dtype)
    if peak is None:
        return candidate.lost("no_time", f"no dense {peak_dtype} peak is published for {hardware.name}")
    context = _request(candidate, request).tokens(graph)
    flops = count_flops(graph, context=context, batch=1).train_step / context * (request.train_tokens or 0)
    least = flops / peak / candidate.num_gpus
    if least > (request.deadline or inf):
        return candidate.lost("deadline", f"at the peak of the data sheet done in {_days(least)}")
    return None


def _request(candidate: _Candidate, request: SearchRequest) -> PlanRequest:
    options: dict[str, object] = {
        "gpus": f"{candidate.num_gpus}x{candidate.pool.cluster.written}",
        "precision": candidate.precision,
    }
    if candidate.pool.usd is not None:
        options["usd_per_gpu_hour"] = candidate.pool.usd
    return request.candidate(**options)


def _planned(graph: LayerGraph, candidate: _Candidate, request: SearchRequest) -> _Planned | LostTraining:
    asked = _request(candidate, request)
    try:
        made = plan(graph, asked)
    except UserError as error:
        return candidate.lost("no_layout", error.problems[0].message)
    latency = made.latency
    if not made.fits:
        return candidate.lost("memory", made.reasons[0])
    if latency is None or latency.gpu_hours is None:
        return candidate.lost("no_time", (latency.reason if latency else None) or "no time can be estimated")
    price = candidate.pool.usd
    seconds = latency.gpu_hours * _SECONDS_PER_HOUR / candidate.num_gpus
    usd, hourly = (inf, inf) if price is None else (price * latency.gpu_hours, price * candidate.num_gpus)
    return _Planned(candidate, made, asked, seconds, usd, hourly)


def _missed(each: _Planned, request: SearchRequest) -> dict[Literal["deadline", "budget"], float]:
    """The limits that a candidate breaks, with the values that would allow it."""
    missed: dict[Literal["deadline", "budget"], float] = {}
    if each.seconds > (request.deadline or inf):
        missed["deadline"] = each.seconds
    if request.budget is not None and each.usd_per_hour > request.budget:
        missed["budget"] = each.usd_per_hour
    return missed


def _too_late(each: _Planned, request: SearchRequest) -> LostTraining:
    missed = _missed(each, request)
    if "deadline" in missed:
        return each.candidate.lost("deadline", f"done in {_days(each.seconds)}")
    cost = "an unknown price" if each.usd_per_hour == inf else f"{each.usd_per_hour:,.2f} USD an hour"
    return each.candidate.lost("budget", f"{cost}, done in {_days(each.seconds)}")


def _loosen(
    graph: LayerGraph,
    planned: list[_Planned],
    lost: list[LostTraining],
    candidates: list[_Candidate],
    request: SearchRequest,
) -> tuple[Loosening, ...]:
    """For each limit the least value that lets a candidate through with the other as it is, or both together.

    Where no candidate was planned, that of the one that comes nearest by its bound; where none holds the training, why.
    """
    for limits in (("deadline",), ("budget",), ("deadline", "budget")):
        able = [(each, missed) for each in planned if set(missed := _missed(each, request)) == set(limits)]
        able = [(each, missed) for each, missed in able if inf not in missed.values()]
        if able:
            each, missed = min(able, key=lambda pair: (max(pair[1].values()), pair[0].order))
            return (_loosening(each, missed),)
    late = [each for each in candidates if _bound_by(each, lost) == "deadline"]
    nearest = [_planned(graph, each, request) for each in sorted(late, key=lambda each: -each.num_gpus)[:_MOST_TRIED]]
    in_reach = [each for each in nearest if isinstance(each, _Planned)]
    if in_reach and not planned:
        return _loosen(graph, in_reach, lost, candidates, request)
    largest = max(lost, key=lambda each: each.num_gpus)
    where = f"{largest.num_gpus:,}x{largest.hardware}, {largest.precision}"
    return (Loosening(limits=("--gpus",), option="--gpus", why=f"{where}: {largest.why}"),)


def _bound_by(candidate: _Candidate, lost: list[LostTraining]) -> Limit | None:
    name = (candidate.pool.cluster.hardware.name, candidate.num_gpus, candidate.precision)
    return next((each.bound_by for each in lost if (each.hardware, each.num_gpus, each.precision) == name), None)


def _loosening(each: _Planned, missed: dict[Literal["deadline", "budget"], float]) -> Loosening:
    words = {
        "deadline": f"--deadline {ceil(missed.get('deadline', 0) / _SECONDS_PER_DAY)}d",
        "budget": f"--budget {missed.get('budget', 0):.6g}",
    }
    where = f"{each.candidate.num_gpus:,}x{each.candidate.pool.cluster.hardware.name} {each.plan.layout}"
    return Loosening(
        limits=tuple("--" + limit for limit in missed),
        option=" ".join(words[limit] for limit in missed),
        why=f"{where}: done in {_days(each.seconds)}",
    )


def _days(seconds: float) -> str:
    return f"{seconds / _SECONDS_PER_DAY:,.1f} days"


def _ranked(meeting: list[_Planned]) -> Iterator[RankedTraining]:
    """The candidates as rows; the cheapest is first, so that the front is who is sooner than all before."""
    soonest, best = inf, meeting[0].usd if meeting else 0.0
    for rank, each in enumerate(meeting, 1):
        latency, pool = each.plan.latency, each.candidate.pool
        kept = next(row.training for row in each.plan.layouts if row.layout == each.plan.layout)
        assert latency is not None
        assert kept is not None
        error = next((error.median for error in latency.errors if error.metric == "step_time"), 0.0)
        yield RankedTraining(
            rank=rank,
            hardware=pool.cluster.hardware.name,
            num_gpus=each.candidate.num_gpus,
            layout=each.plan.layout,
            training=kept,
            precision=each.candidate.precision,
            step_time_seconds=latency.step_time_seconds or 0.0,
            mfu=latency.mfu or 0.0,
            days=each.seconds / _SECONDS_PER_DAY,
            gpu_hours=latency.gpu_hours or 0.0,
            usd_per_gpu_hour=pool.usd,
            price_source=pool.source,
            usd_per_hour=None if pool.usd is None else each.usd_per_hour,
            usd=None if pool.usd is None else each.usd,
            within_error=each.usd <= best * (1 + error),
            on_front=each.seconds < soonest,
            extrapolated=latency.extrapolated,
            plan=each.request.command_line(),
            request=each.request.echo(),
        )
        soonest = min(soonest, each.seconds)
