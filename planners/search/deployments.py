"""The search for deployments: every candidate of the space, the ones that meet all limits by price, the others' bounds.

The space: hardware x sizes of a replica (powers of two, and all GPUs that there are) x layouts x schemes x KV dtypes x
engines x replicas, or loads of one replica. Nothing is sampled: candidates are only left out by proof, and counted.
"""

from collections.abc import Iterator

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.progress import Progress
from l4spec.quantization.published import AS_PUBLISHED
from planners.deployment import Deployment
from planners.latency_types import Latency
from planners.request import PlanRequest
from planners.search.candidates import Candidate, ReplicaKind, Tally, candidates_of
from planners.search.loosening import loosen, sentence
from planners.search.pools import Pool, pools_of
from planners.search.search_request import (
    DEFAULT_ENGINES,
    DEFAULT_KV_DTYPES,
    DEFAULT_SCHEMES,
    SearchRequest,
    choices,
)
from planners.search.search_types import FrontPoint, Loser, RankedDeployment, SearchAnswer, SpaceSize
from planners.timing.efficiency import serving_efficiency
from planners.timing.latency_report import engine_latency

MOST_RANKED = 1000


def search_deployments(graph: LayerGraph, request: SearchRequest, *, progress: Progress | None = None) -> SearchAnswer:
    """Rank every deployment that serves the request within its limits, and report the limits that exclude the others.

    `progress` is called with the numbers of kinds of deployment, done and in all. Raises UserError for unknown names
    and for invalid requests.
    """
    request.check_level()
    pools = pools_of(request)
    kinds = [kind for pool in pools for kind in _kinds(graph, pool, request)]
    if not kinds:
        raise UserError("the space of deployments is empty", hint="allow more hardware, schemes or engines")
    tally, points = Tally(), list[Candidate]()
    for number, kind in enumerate(kinds):
        points += candidates_of(kind, request, tally)
        if progress is not None:
            progress(number + 1, len(kinds))
    meeting = sorted((point for point in points if not point.needs), key=_order)
    front = _front(points)
    sources = {pool.cluster.hardware.name: pool.source for pool in pools}
    latency = _latency(graph, meeting[0], request) if meeting else None
    return SearchAnswer(
        model=graph.name,
        request=request.echo(),
        space=SpaceSize(candidates=tally.candidates, pruned=tally.pruned, timed=tally.timed),
        num_meeting=len(meeting),
        ranked=tuple(_ranked(meeting[:MOST_RANKED], front, sources, request)),
        front=tuple(map(_front_point, front)),
        losers=tuple(_losers(kinds, points, tally, request)),
        loosen=() if meeting else loosen(points, tally, request),
        prices=tuple(f"{name}: {source or 'no list price known'}" for name, source in sources.items()),
        errors=tuple(latency.errors) if latency else (),
        cautions=latency.cautions if latency else (),
    )


def _latency(graph: LayerGraph, point: Candidate, request: SearchRequest) -> Latency:
    """The times of a candidate's own plan, with their errors."""
    return engine_latency(Deployment.resolve(graph, plan_of(point, request)), point.layout, 1)


def _kinds(graph: LayerGraph, pool: Pool, request: SearchRequest) -> Iterator[ReplicaKind]:
    written, seen = pool.cluster.written, set[tuple[str, str, str]]()
    for engine in choices(request.engine, DEFAULT_ENGINES):
        for quantization in choices(request.quantization, DEFAULT_SCHEMES):
            for kv_dtype in choices(request.kv_dtype, DEFAULT_KV_DTYPES):
                load = {} if request.concurrency is not None or request.rate is not None else {"concurrency": 1}
                options = {"quantization": quantization, "kv_dtype": kv_dtype, "engine": engine, **load}
                first = Deployment.resolve(graph, request.candidate(gpus=f"1x{written}", **options))
                key = (engine, first.setting.scheme.name, kv_dtype)
                if key in seen and quantization != AS_PUBLISHED:
                    continue  # the published format by its name
                seen.add(key)
                for size in pool.sizes:
                    replica = first.changed(num_gpus=size)
                    names = (first.setting.scheme.name, kv_dtype, engine)
                    yield ReplicaKind(pool.cluster.hardware.name, size, pool.most // size, *names, pool.usd, replica)


def _order(point: Candidate) -> tuple[object, ...]:
    """The cheapest request first, then fewer GPUs, then the faster for a user, then by name: no order is by chance."""
    kind = point.kind
    return (
        point.usd_per_request,
        point.num_gpus,
        -point.user_rate,
        (kind.hardware, kind.engine, kind.quantization, kind.kv_dtype, str(point.layout)),
    )


def _front(points: list[Candidate]) -> list[Candidate]:
    """Candidates that no other one beats both in tokens per second of a user and in those of a GPU."""
    front, best = list[Candidate](), 0.0
    for point in sorted(points, key=lambda p: (-p.user_rate, -p.service.tokens_per_second_per_gpu, _order(p))):
        if point.service.tokens_per_second_per_gpu > best and all(name != "rate" for name, _ in point.needs):
            best = point.service.tokens_per_second_per_gpu
            front.append(point)
    return front


def _front_point(point: Candidate) -> FrontPoint:
    return FrontPoint(
        tokens_per_second_per_user=point.user_rate,
        tokens_per_second_per_gpu=point.service.tokens_per_second_per_gpu,
        num_gpus=point.num_gpus,
        hardware=point.kind.hardware,
        layout=point.layout,
        quantization=point.kind.quantization,
        meets_limits=not point.needs,
    )


def _ranked(
    meeting: list[Candidate], front: list[Candidate], sources: dict[str, str | None], request: SearchRequest
) -> Iterator[RankedDeployment]:
    on_front, best = set(map(id, front)), meeting[0].usd_per_request if meeting else 0.0
    for rank, point in enumerate(meeting, 1):
        kind, prices = point.kind, point.usd_per_million
        yield RankedDeployment(
            rank=rank,
            hardware=kind.hardware,
            replicas=point.replicas,
            gpus_per_replica=kind.size,
            num_gpus=point.num_gpus,
            layout=point.layout,
            quantization=kind.quantization,
            kv_dtype=kind.kv_dtype,
            engine=kind.engine,
            concurrency_per_replica=point.concurrency,
            rate_per_replica=point.rate,
            ttft_seconds=point.service.ttft,
            time_per_output_token_seconds=point.service.tpot,
            tokens_per_second_per_user=point.user_rate,
            tokens_per_second_per_gpu=point.service.tokens_per_second_per_gpu,
            usd_per_gpu_hour=kind.usd_per_gpu_hour,
            price_source=sources[kind.hardware],
            usd_per_hour=point.usd_per_hour,
            usd_per_million_input_tokens=prices[0] if prices else None,
            usd_per_million_output_tokens=prices[1] if prices else None,
            within_error=point.usd_per_request <= best * (1 + _median_error(kind.engine, request.factors)),
            on_front=id(point) in on_front,
            extrapolated=point.extrapolated,
            plan=(planned := plan_of(point, request)).command_line(),
            request=planned.echo(),
        )


def _median_error(engine: str, factors: str | None) -> float:
    """The relative error of TPOT that half of the held-out rows exceed: prices follow throughput, and it TPOT."""
    efficiency = serving_efficiency(engine, factors)
    error = efficiency.error("tpot") if efficiency is not None else None
    return error.median if error is not None else 0.0


def plan_of(point: Candidate, request: SearchRequest) -> PlanRequest:
    """The plan of one replica under its share of the load."""
    layout, kind = point.layout, point.kind
    options: dict[str, object] = {axis: getattr(layout, axis) for axis in ("tp", "ep", "pp")}
    options |= {"concurrency": point.concurrency} if point.rate is None else {"rate": point.rate}
    if kind.usd_per_gpu_hour is not None:
        options["usd_per_gpu_hour"] = kind.usd_per_gpu_hour
    return request.candidate(**{**kind.deployment.request.echo(), **options})


def _losers(kinds: list[ReplicaKind], points: list[Candidate], tally: Tally, request: SearchRequest) -> Iterator[Loser]:
    """Kinds without a candidate that meets every limit, each with the limits that its nearest one misses."""
    nearest, meeting = dict[ReplicaKind, Candidate](), set[ReplicaKind]()
    for point in points:
        if not point.needs:
            meeting.add(point.kind)
        known = nearest.get(point.kind)
        if known is None or sentence(point, request)[0] < sentence(known, request)[0]:
            nearest[point.kind] = point
    for kind in kinds:
        if kind in meeting:
            continue
        if kind in nearest:
            _, limit, why = sentence(nearest[kind], request)
        else:
            limit, why, _ = tally.ruled_out[kind]
        names = (kind.hardware, kind.size, kind.quantization, kind.kv_dtype, kind.engine)
        fields = ("hardware", "gpus_per_replica", "quantization", "kv_dtype", "engine")
        yield Loser(**dict(zip(fields, names, strict=True)), bound_by=limit, why=why)  # type: ignore[arg-type]
