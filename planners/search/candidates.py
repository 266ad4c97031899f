"""Candidates of a deployment search: layouts of one replica kind, their service, and the limits that each breaks."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from l4spec.quantization.published import published_name
from l4spec.sharding.layout import Layout, candidate_layouts
from l4spec.units import ceil_div, gib
from planners.catalog.engine_formats import unreadable, unsupported
from planners.deployment import Deployment
from planners.device.memory import Placement, place
from planners.search.layouts import largest, max_batch, why_not
from planners.search.search_request import SearchRequest
from planners.search.search_types import Limit
from planners.timing.latency_report import Service, model_of, service
from planners.timing.step import StepModel


@dataclass(frozen=True, slots=True)
class ReplicaKind:
    """Hardware, weight scheme, KV dtype and engine of one replica, before its layout is chosen.

    `size` counts the GPUs of a replica, `most_replicas` how many the budget of GPUs allows.
    """

    hardware: str
    size: int
    most_replicas: int
    quantization: str
    kv_dtype: str
    engine: str
    usd_per_gpu_hour: float | None
    deployment: Deployment = field(compare=False)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica kind with a layout, a number of replicas and a load, and the service that it gives.

    `concurrency` (clients) or `rate` (requests per second) is the load of the busiest replica, `user_rate` the output
    tokens per second of one user, prefill included. `extrapolated`: the factors were fitted on other hardware. `needs`
    lists each broken limit with the value that it would have to be set to, in the limit's unit.
    """

    kind: ReplicaKind
    layout: Layout
    replicas: int
    concurrency: int | None
    rate: float | None
    service: Service
    user_rate: float
    extrapolated: bool
    needs: tuple[tuple[Limit, float], ...]

    @property
    def num_gpus(self) -> int:
        """GPUs of all replicas."""
        return self.kind.size * self.replicas

    @property
    def usd_per_hour(self) -> float | None:
        """USD of an hour of all replicas; None without a price."""
        price = self.kind.usd_per_gpu_hour
        return None if price is None else price * self.num_gpus

    @property
    def usd_per_million(self) -> tuple[float, float] | None:
        """USD of a million input tokens and of a million output tokens; None without a price."""
        price, share = self.kind.usd_per_gpu_hour, self.service.prefill_share
        if price is None or share is None:
            return None
        output = price / 3600 / self.service.tokens_per_second_per_gpu * 1e6
        deployment = self.kind.deployment
        ratio = (deployment.output_tokens or 1) / deployment.prompt_tokens
        return output * share * ratio, output * (1 - share)

    @property
    def usd_per_request(self) -> float:
        """USD of one request; infinite without a price, so that it ranks last."""
        prices, deployment = self.usd_per_million, self.kind.deployment
        if prices is None:
            return float("inf")
        return (prices[0] * deployment.prompt_tokens + prices[1] * (deployment.output_tokens or 1)) / 1e6


@dataclass(slots=True)
class Tally:
    """Counts of candidates, and for each replica kind that was ruled out before timing the reason why."""

    candidates: int = 0
    pruned: int = 0
    timed: int = 0
    ruled_out: dict[ReplicaKind, tuple[Limit, str, float]] = field(default_factory=dict)
    """By kind the broken limit, a sentence and the relative shortfall of the layout that comes nearest."""

    def rule_out(self, kind: ReplicaKind, limit: Limit, why: str, missing: float, number: int) -> None:
        """Count `number` candidates of a layout as ruled out without timing."""
        self.pruned += number
        known = self.ruled_out.get(kind)
        if known is None or missing < known[2]:
            self.ruled_out[kind] = (limit, why, missing)


def candidates_of(kind: ReplicaKind, request: SearchRequest, tally: Tally) -> Iterator[Candidate]:
    """Every candidate of a kind that can serve, timed; the others are counted in `tally` with the reason."""
    number = len(_shares(request, kind.most_replicas))
    layouts = [layout for layout in request.allowed(candidate_layouts(kind.size)) if layout.dp == 1]
    tally.candidates += number * max(len(layouts), 1)
    refused = _refused(kind)
    if refused is not None:
        tally.rule_out(kind, "no_engine", refused, 0.0, number * max(len(layouts), 1))
        return
    if not layouts:
        tally.rule_out(kind, "no_layout", "the fixed degrees need another number of GPUs", float("inf"), number)
    for layout in layouts:
        yield from _of_layout(kind, layout, request, tally)


def _of_layout(kind: ReplicaKind, layout: Layout, request: SearchRequest, tally: Tally) -> Iterator[Candidate]:
    deployment, shares = kind.deployment, _shares(request, kind.most_replicas)
    reason = why_not(deployment.setting, layout, deployment.context)
    if reason is not None:
        tally.rule_out(kind, "no_layout", reason, float("inf"), len(shares))
        return
    placement = place(deployment.setting, layout)
    if not placement.fits(deployment.context, 1):
        tally.rule_out(kind, "memory", *_too_large(placement, deployment), len(shares))
        return
    limit = request.max_context
    if limit is not None and not placement.fits(limit, 1):
        longest = largest(lambda tokens: placement.room(tokens, 1), limit)
        why = f"room for one sequence of {longest:,} tokens, not of {limit:,}"
        tally.rule_out(kind, "max_context", why, (limit - longest) / limit, len(shares))
        return
    model = model_of(deployment, layout)
    if model.unknown or model.efficiency is None:
        why = model.unknown or f"no published measurements of {kind.engine!r}"
        tally.rule_out(kind, "no_time", why, 0.0, len(shares))
        return
    yield from _timed(kind, placement, model, request, tally)


def _timed(
    kind: ReplicaKind, placement: Placement, model: StepModel, request: SearchRequest, tally: Tally
) -> Iterator[Candidate]:
    """The replicas and loads of a layout that has room.

    Two numbers of replicas with the same largest share of clients are served alike, and the smaller costs less and has
    more tokens per second and GPU: the larger is ruled out by proof.
    """
    deployment = kind.deployment
    most = max_batch(placement, deployment.context)
    known: set[int | float] = set()
    for replicas, clients, rate in _shares(request, kind.most_replicas):
        share = clients if rate is None else rate
        if share in known or clients > most:
            if clients > most:
                why = f"room for {most:,} sequences of {deployment.context:,} tokens, not for {clients:,}"
                tally.rule_out(kind, "memory", why, (clients - most) / clients, 1)
            else:
                tally.pruned += 1
            continue
        known.add(share)
        tally.timed += 1
        asked = deployment.request if rate is None else deployment.request.model_copy(update={"rate": rate})
        given = service(model, deployment._replace(batch=clients, request=asked), most, (0.0, 0.0))
        if request.concurrency is not None:  # other replicas may have a client fewer
            there = request.concurrency / (replicas * clients)
            given = given._replace(tokens_per_second_per_gpu=there * given.tokens_per_second_per_gpu)
        yield _candidate(kind, model, (replicas, clients, rate), given, request)


def _candidate(
    kind: ReplicaKind, model: StepModel, load: tuple[int, int, float | None], given: Service, request: SearchRequest
) -> Candidate:
    replicas, clients, rate = load
    output = kind.deployment.output_tokens or 1
    assert model.efficiency is not None, "asked before"
    point = Candidate(
        kind=kind,
        layout=model.layout,
        replicas=replicas,
        concurrency=clients if rate is None else None,
        rate=rate,
        service=given,
        user_rate=output / (given.ttft + (output - 1) * given.tpot),
        extrapolated=model.machine.hardware.name not in model.efficiency.hardware,
        needs=(),
    )
    return replace(point, needs=tuple(_broken(point, request, model.layout.num_devices)))


def _broken(point: Candidate, request: SearchRequest, devices: int) -> Iterator[tuple[Limit, float]]:
    """Limits that a candidate breaks, each with the value that would allow it."""
    given = point.service
    if request.ttft is not None and given.ttft > request.ttft:
        yield "ttft", given.ttft
    if request.tpot is not None and given.tpot > request.tpot:
        yield "tpot", given.tpot
    if point.rate is not None:
        served = given.tokens_per_second_per_gpu * devices / (point.kind.deployment.output_tokens or 1)
        if served < 0.999 * point.rate:
            yield "rate", served * point.replicas
    if request.budget is not None:
        cost = point.usd_per_hour
        if cost is None or cost > request.budget:
            yield "budget", float("inf") if cost is None else cost


def _shares(request: SearchRequest, most_replicas: int) -> list[tuple[int, int, float | None]]:
    """Numbers of replicas with the clients, or the rate, of the busiest one; without a load one replica under many."""
    if request.rate is not None:
        return [(n, 1, request.rate / n) for n in range(1, most_replicas + 1)]
    if request.concurrency is not None:
        return [(n, ceil_div(request.concurrency, n), None) for n in range(1, most_replicas + 1)]
    return [(1, 1 << power, None) for power in range(13)]


def _refused(kind: ReplicaKind) -> str | None:
    hardware = kind.deployment.setting.hardware
    assert hardware is not None, "a search is over hardware"
    deployment, scheme = kind.deployment, kind.deployment.setting.scheme.name
    published = published_name(deployment.graph.model.spec)
    return unsupported(kind.engine, hardware, scheme) or unreadable(kind.engine, scheme, published)


def _too_large(placement: Placement, deployment: Deployment) -> tuple[str, float]:
    use = placement.tightest(deployment.context, 1)
    assert placement.budget is not None, "a search is over hardware"
    missing = use.total - placement.budget.limit(use)
    return f"{gib(missing)} too much on a GPU with one sequence", float(missing)
