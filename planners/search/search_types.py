"""Documents of `l4spec search`: ranked deployments, the limits that excluded others, and limits to relax."""

from typing import Any, Literal

from l4spec.sharding.layout import Layout
from planners.frozen import Frozen
from planners.latency_types import LatencyError

Limit = Literal[
    "memory", "max_context", "ttft", "tpot", "rate", "budget", "deadline", "no_layout", "no_engine", "no_time"
]
"""Reason that rules a candidate out: no room for weights and load; no room for one sequence of the engine's limit; the
service level; requests that pile up; the budget; a training's deadline; no legal layout or no scheme for this model; an
engine that does not run there; no time that can be estimated."""


class SimulatedService(Frozen):
    """Simulated service of one replica under its share of the load.

    `attainment` is the share of requests within the service level; `breaks` names the limits that the mean breaks,
    contrary to the closed form.
    """

    requests: int
    ttft_mean_seconds: float
    ttft_p99_seconds: float
    tpot_mean_seconds: float | None
    tpot_p99_seconds: float | None
    attainment: float
    breaks: tuple[str, ...]


class RankedDeployment(Frozen):
    """Replicas of one layout that meet every limit.

    `plan` are the command-line options of one replica under its share of the load, and `request` the same for
    `planners.PlanRequest`. `usd_per_million_input_tokens` and `..._output_tokens` split the cost of the GPUs by the
    time that prefill and decode keep them busy; both together over a request's tokens are the cost of the request. Null
    without a price. `within_error`: its price is above the best one's by no more than the estimate's median error.
    `on_front`: no fitting deployment has more tokens per second both per GPU and per user. `extrapolated`: the factors
    were fitted elsewhere. `tokens_per_second_per_gpu` is of all replicas, of which some may have a client fewer than
    `concurrency_per_replica`.
    """

    rank: int
    hardware: str
    replicas: int
    gpus_per_replica: int
    num_gpus: int
    layout: Layout
    quantization: str
    kv_dtype: str
    engine: str
    concurrency_per_replica: int | None
    rate_per_replica: float | None
    ttft_seconds: float
    time_per_output_token_seconds: float
    tokens_per_second_per_user: float
    tokens_per_second_per_gpu: float
    usd_per_gpu_hour: float | None
    price_source: str | None
    usd_per_hour: float | None
    usd_per_million_input_tokens: float | None
    usd_per_million_output_tokens: float | None
    within_error: bool
    on_front: bool
    extrapolated: bool
    simulated: SimulatedService | None = None
    """Simulated service; the command line simulates the first deployment, and with `--simulate` ten."""
    not_simulated: str = ""
    """Reason why there is no simulation."""
    plan: str
    request: dict[str, Any]


class FrontPoint(Frozen):
    """A deployment on the Pareto front of tokens/s per user and tokens/s per GPU; `meets_limits`: of all limits."""

    tokens_per_second_per_user: float
    tokens_per_second_per_gpu: float
    num_gpus: int
    hardware: str
    layout: Layout
    quantization: str
    meets_limits: bool


class Loser(Frozen):
    """A kind of deployment of which no candidate meets every limit, and the limit that the nearest candidate misses."""

    hardware: str
    gpus_per_replica: int
    quantization: str
    kv_dtype: str
    engine: str
    bound_by: Limit
    why: str


class Loosening(Frozen):
    """The least change of limits, one alone or several together, that a deployment would meet."""

    limits: tuple[str, ...]
    option: str
    why: str


class SpaceSize(Frozen):
    """Numbers of candidates: all, those ruled out by proof without timing, and those timed."""

    candidates: int
    pruned: int
    timed: int


class SearchAnswer(Frozen):
    """Answer of a search: the space, the deployments that meet every limit, best first, and the excluded ones."""

    l4spec_search: Literal[1] = 1
    model: str
    mode: Literal["serve"] = "serve"
    request: dict[str, Any]
    space: SpaceSize
    num_meeting: int
    ranked: tuple[RankedDeployment, ...]
    front: tuple[FrontPoint, ...]
    losers: tuple[Loser, ...]
    loosen: tuple[Loosening, ...]
    prices: tuple[str, ...]
    errors: tuple[LatencyError, ...] = ()
    """Errors of the estimates on published rows like the first deployment."""
    cautions: tuple[str, ...] = ()
    """Properties of the first deployment outside the range of the measured rows."""
