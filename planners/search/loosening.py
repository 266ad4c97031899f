"""Limits that a failed search could relax, and by how much: shown when no candidate meets every limit."""

from math import inf, prod

from planners.search.candidates import Candidate, ReplicaKind, Tally
from planners.search.least_gpus import least_gpus
from planners.search.search_request import SearchRequest
from planners.search.search_types import Limit, Loosening

_LIMITS: dict[Limit, str] = {"ttft": "--ttft", "tpot": "--tpot", "rate": "--rate", "budget": "--budget"}


def sentence(point: Candidate, request: SearchRequest) -> tuple[float, Limit, str]:
    """(product of the factors by which limits are missed, the limit missed most, a sentence about it)."""
    if not point.needs:
        return 1.0, "memory", ""
    limit, value = max(point.needs, key=lambda need: _factor(need, request))
    factor = prod(_factor(need, request) for need in point.needs)
    return factor, limit, f"{_named(limit)} of {_shown(limit, value)} at best, the limit is {_limit(limit, request)}"


def loosen(points: list[Candidate], tally: Tally, request: SearchRequest) -> tuple[Loosening, ...]:
    """For each limit the smallest change with which a candidate meets all of them, the others unchanged.

    Where none does it alone, the least change of several limits together; where nothing could be timed, the reason of
    the kinds that come nearest to fitting.
    """
    single = [_alone(limit, points, request) for limit in _LIMITS]
    alone = tuple(each for each in single if each is not None)
    if alone:
        return alone
    together = min(points, key=lambda point: sentence(point, request)[0], default=None)
    if together is not None and sentence(together, request)[0] < inf:
        option = " ".join(_option(limit, value) for limit, value in together.needs)
        limits = tuple(_LIMITS[limit] for limit, _ in together.needs)
        return (Loosening(limits=limits, option=option, why=_where(together)),)
    return _room(tally, request)


def _alone(limit: Limit, points: list[Candidate], request: SearchRequest) -> Loosening | None:
    only = [point for point in points if {name for name, _ in point.needs} == {limit}]
    best = min(only, key=lambda point: _factor(point.needs[0], request), default=None)
    if best is None or _factor(best.needs[0], request) == inf:
        return None
    return Loosening(limits=(_LIMITS[limit],), option=_option(*best.needs[0]), why=_where(best))


def _room(tally: Tally, request: SearchRequest) -> tuple[Loosening, ...]:
    """Suggestion if no candidate could be timed: the nearest miss in memory, or else the first reason."""
    order: tuple[Limit, ...] = ("max_context", "memory", "no_time", "no_layout", "no_engine")
    for limit in order:
        ruled_out = [(missing, kind, why) for kind, (name, why, missing) in tally.ruled_out.items() if name == limit]
        if ruled_out:
            missing, kind, why = min(ruled_out, key=lambda each: (each[0], each[1].size))
            where = f"{kind.size}x{kind.hardware}, {kind.quantization} weights, KV cache in {kind.kv_dtype}"
            name = "--max-context" if limit == "max_context" else "--gpus"
            value = _enough(limit, kind, missing, request)
            return (Loosening(limits=(name,), option=f"{name} {value}".strip(), why=f"{where}: {why}"),)
    return ()


def _enough(limit: Limit, kind: ReplicaKind, missing: float, request: SearchRequest) -> str:
    """The value that gives room: the longest sequence, or the least GPUs whose replica holds every client."""
    if limit == "max_context" and request.max_context is not None:
        longest = round(request.max_context * (1 - missing))
        return str(longest) if longest else ""
    if limit != "memory":
        return ""
    least = least_gpus(kind.deployment._replace(batch=request.concurrency or 1))
    return "" if least is None else f"{least.num_gpus}x{kind.hardware}"


def _factor(need: tuple[Limit, float], request: SearchRequest) -> float:
    """Factor by which a limit is missed; at least 1."""
    limit, value = need
    bound: float = getattr(request, limit)
    return bound / value if limit == "rate" else value / bound


def _option(limit: Limit, value: float) -> str:
    """The option that allows a value, rounded up (a rate: down) to three digits."""
    digits = 10.0 ** (_exponent(value) - 2)
    rounded = value // digits * digits if limit == "rate" else -(-value // digits) * digits
    text = {"ttft": f"{rounded * 1e3:.6g}ms", "tpot": f"{rounded * 1e3:.6g}ms"}.get(limit, f"{rounded:.6g}")
    return f"{_LIMITS[limit]} {text}"


def _exponent(value: float) -> int:
    from math import floor, log10

    return floor(log10(value))


def _named(limit: Limit) -> str:
    return {"ttft": "TTFT", "tpot": "TPOT", "rate": "requests per second", "budget": "cost"}.get(limit, limit)


def _shown(limit: Limit, value: float) -> str:
    if limit in ("ttft", "tpot"):
        return f"{value * 1e3:,.1f} ms"
    if value == inf:
        return "an unknown price"
    return f"{value:.3g}/s" if limit == "rate" else f"{value:,.2f} USD an hour"


def _limit(limit: Limit, request: SearchRequest) -> str:
    return _shown(limit, float(getattr(request, limit)))


def _where(point: Candidate) -> str:
    kind = point.kind
    return (
        f"{point.replicas} x {kind.size}x{kind.hardware} {point.layout}, {kind.quantization} weights, {kind.engine}: "
        f"TTFT {point.service.ttft * 1e3:,.1f} ms, TPOT {point.service.tpot * 1e3:,.1f} ms"
    )
