"""What the serving and the training half of a plan's latency section share."""

from dataclasses import dataclass

from planners.plan_types import KindLatency, LatencyError, StepLatency
from planners.timing.efficiency import FitError
from planners.timing.layer_demand import UNIFORM, Routing
from planners.timing.step import KindTime, StepTime


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user asks about time: tokens a sequence, sequences, and what only a price or a training run needs.

    `output_tokens` are part of the context; `max_batch` sequences of the whole deployment fit at once.
    """

    context: int
    batch: int
    output_tokens: int | None = None
    max_batch: int = 0
    train_tokens: int | None = None
    usd_per_gpu_hour: float | None = None
    routing: Routing = UNIFORM


def step_latency(time: StepTime) -> StepLatency:
    """A step's time as the plan prints it."""
    return StepLatency(
        bound_seconds=time.bound,
        bounded_by=time.bounded_by,
        estimate_seconds=time.estimate,
        by_kind=tuple(_kind(kind) for kind in time.kinds),
    )


def _kind(kind: KindTime) -> KindLatency:
    return KindLatency(
        name=kind.name,
        count=kind.count,
        compute_seconds=kind.compute,
        memory_seconds=kind.memory,
        links_seconds=kind.links,
        bound_seconds=kind.bound,
        bounded_by=kind.bounded_by,
        estimate_seconds=kind.estimate,
    )


def latency_errors(errors: tuple[FitError, ...]) -> tuple[LatencyError, ...]:
    """Errors of a fit as the plan prints them."""
    return tuple(LatencyError(**error.model_dump()) for error in errors)
