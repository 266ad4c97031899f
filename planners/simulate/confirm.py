"""The best deployments of a search, simulated: does the closed form that ranked them agree?"""

from collections.abc import Sequence
from typing import Any

from l4spec.errors import Problem, UserError
from l4spec.options import flag_of
from l4spec.progress import Progress
from l4spec.spec.scenario.references import LoadedScenario
from planners.search.search_request import SearchRequest
from planners.search.search_types import RankedDeployment, SearchAnswer, SimulatedService
from planners.simulate.request import SimulateRequest
from planners.simulate.requested_scenario import scenario_of
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
    progress: Progress | None = None,
    *,
    number: int = MOST_CONFIRMED,
    time_limit: float | None = None,
) -> SearchAnswer:
    """The answer, its first `number` rows with the service that a simulation of one replica gives, or why none does.

    A simulation may take `time_limit` seconds. Raises UserError for options that a simulation does not take.
    """
    first = answer.ranked[:number]
    unknown = options_left_out(first)
    if unknown:
        hint = "leave it out, or --simulate"
        message = "is not part of a simulation"
        raise UserError([Problem(message, path=flag_of(SearchRequest, name), hint=hint) for name in unknown])
    rows = []
    for done, row in enumerate(first, 1):
        update: dict[str, object] = {}
        try:
            update["simulated"] = _simulated(_scenario(spec, overrides, row, request), request, time_limit)
        except UserError as error:
            update["not_simulated"] = error.problems[0].message
        rows.append(row.model_copy(update=update))
        if progress is not None:
            progress(done, len(first))
    return answer.model_copy(update={"ranked": (*rows, *answer.ranked[number:])})


def options_left_out(rows: Sequence[RankedDeployment]) -> list[str]:
    """Options of the rows' plans that a simulation does not take."""
    return sorted({name for row in rows for name in row.request} - _SIMULATED - _TRANSLATED)


def _scenario(spec: str, overrides: Sequence[str], row: RankedDeployment, request: SearchRequest) -> LoadedScenario:
    """One replica of a row under its share of the load."""
    clients = row.concurrency_per_replica
    options: dict[str, Any] = {name: value for name, value in row.request.items() if name in _SIMULATED}
    options |= {"rate": f"{row.rate_per_replica}/s"} if clients is None else {"concurrency": clients}
    options |= {name: getattr(request, name) for name in ("prompt_tokens", "output_tokens")}
    options |= {name: f"{limit} s" for name in ("ttft", "tpot") if (limit := getattr(request, name)) is not None}
    return scenario_of(spec, SimulateRequest(**options, requests=max(_FEWEST, _WAVES * (clients or 0))), overrides)


def _simulated(loaded: LoadedScenario, request: SearchRequest, time_limit: float | None) -> SimulatedService:
    """Raises UserError where no request can run, or the simulation takes too long."""
    result = Simulation(loaded).run(time_limit=time_limit).result
    if result.ended != "finished":
        raise UserError(f"took more than {time_limit:g} s")
    assert result.ttft is not None, "some request has ended"
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
