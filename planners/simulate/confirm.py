"""The best deployments of a search, simulated: does the closed form that ranked them agree?"""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from l4spec.errors import Problem, UserError
from l4spec.options import flag_of
from planners.search.search_request import SearchRequest
from planners.search.search_types import RankedDeployment, SearchAnswer, SimulatedService
from planners.simulate.asked import scenario_of
from planners.simulate.request import SimulateRequest
from planners.simulate.run import Simulation

MOST_CONFIRMED = 10
_WAVES = 8
_FEWEST = 200
"""Requests of a simulation at least, or as many as `_WAVES` times the clients."""
_SIMULATED = frozenset(
    {"gpus", "quantization", "kv_dtype", "engine", "tp", "ep", "pp", "routing", "memory_fraction", "factors"}
)
_TRANSLATED = frozenset({"mode", "prompt_tokens", "output_tokens", "concurrency", "rate", "usd_per_gpu_hour"})


def confirmed(
    spec: str,
    overrides: Sequence[str],
    answer: SearchAnswer,
    request: SearchRequest,
    tick: Callable[[int, int], None] | None = None,
    number: int = MOST_CONFIRMED,
) -> SearchAnswer:
    """The answer, its first `number` rows with the service that a simulation of one replica gives.

    Raises UserError for options of the search that a simulation does not take.
    """
    first = answer.ranked[:number]
    unknown = not_simulated(first)
    if unknown:
        hint = "leave it out, or --simulate"
        message = "is not part of a simulation"
        raise UserError([Problem(message, path=flag_of(SearchRequest, name), hint=hint) for name in unknown])
    rows = []
    for done, row in enumerate(first, 1):
        rows.append(row.model_copy(update={"simulated": _simulated(spec, overrides, row, request)}))
        if tick is not None:
            tick(done, len(first))
    return answer.model_copy(update={"ranked": (*rows, *answer.ranked[number:])})


def not_simulated(rows: Sequence[RankedDeployment]) -> list[str]:
    """Options of the rows' plans that a simulation does not take."""
    return sorted({name for row in rows for name in row.request} - _SIMULATED - _TRANSLATED)


def _simulated(spec: str, overrides: Sequence[str], row: RankedDeployment, request: SearchRequest) -> SimulatedService:
    clients = row.concurrency_per_replica
    options: dict[str, Any] = {name: value for name, value in row.request.items() if name in _SIMULATED}
    options |= {"rate": f"{row.rate_per_replica}/s"} if clients is None else {"clients": clients}
    options |= {name: getattr(request, name) for name in ("prompt_tokens", "output_tokens")}
    options |= {name: f"{limit} s" for name in ("ttft", "tpot") if (limit := getattr(request, name)) is not None}
    load = SimulateRequest(**options, requests=max(_FEWEST, ceil(_WAVES * (clients or 0))))
    result = Simulation(scenario_of(spec, load, overrides)).run().result
    assert result.ttft is not None, "every request ends"
    tpot = result.tpot
    means = {"ttft": result.ttft.mean, "tpot": tpot.mean if tpot else 0.0}
    broken = [name for name, mean in means.items() if (limit := getattr(request, name)) is not None and mean > limit]
    return SimulatedService(
        requests=result.requests,
        ttft_mean_seconds=result.ttft.mean,
        ttft_p99_seconds=result.ttft.p99,
        tpot_mean_seconds=tpot.mean if tpot else None,
        tpot_p99_seconds=tpot.p99 if tpot else None,
        attainment=result.attainment,
        breaks=tuple(broken),
    )
