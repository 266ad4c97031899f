"""What the serving and the training half of a plan's latency section share."""

from planners.plan_types import KindLatency, LatencyError, StepLatency
from planners.timing.efficiency import FitError
from planners.timing.step import KindTime, StepTime


def step_latency(time: StepTime) -> StepLatency:
    """A step's time as the plan prints it."""
    return StepLatency(
        bound_seconds=time.bound,
        bounded_by=time.bounded_by,
        estimate_seconds=time.estimate,
        by_kind=tuple(_kind(kind) for kind in time.kinds),
    )


def _kind(kind: KindTime) -> KindLatency:
    return KindLatency.model_construct(  # many a plan, of numbers that are checked
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
