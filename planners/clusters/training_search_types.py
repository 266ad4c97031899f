"""Documents of `l4spec search --mode train`: clusters by price, and the limits that the others miss."""

from typing import Any, Literal

from l4spec.sharding.layout import Layout
from planners.frozen import Frozen
from planners.latency_types import LatencyError
from planners.plan_types import KeptState
from planners.search.search_types import Limit, Loosening, SpaceSize


class RankedTraining(Frozen):
    """A cluster that meets the deadline. `plan` are the options that plan it, and `request` the same for
    `planners.PlanRequest`; `within_error` and `extrapolated` as in `RankedDeployment`.

    `on_front`: no other is both faster and cheaper.
    """

    rank: int
    hardware: str
    num_gpus: int
    layout: Layout
    training: KeptState
    precision: str
    step_time_seconds: float
    mfu: float
    days: float
    gpu_hours: float
    usd_per_gpu_hour: float | None
    price_source: str | None
    usd_per_hour: float | None
    usd: float | None
    within_error: bool
    on_front: bool
    extrapolated: bool
    plan: str
    request: dict[str, Any]


class LostTraining(Frozen):
    """A cluster that misses a limit, and which."""

    hardware: str
    num_gpus: int
    precision: str
    bound_by: Limit
    why: str


class TrainingSearchAnswer(Frozen):
    """Answer of a search of training: the space, the clusters that meet the deadline, cheapest first, and the rest."""

    l4spec_search: Literal[1] = 1
    model: str
    mode: Literal["train"] = "train"
    request: dict[str, Any]
    space: SpaceSize
    num_meeting: int
    ranked: tuple[RankedTraining, ...]
    losers: tuple[LostTraining, ...]
    loosen: tuple[Loosening, ...]
    prices: tuple[str, ...]
    errors: tuple[LatencyError, ...] = ()
    """Errors of the estimates on published rows like the first cluster."""
