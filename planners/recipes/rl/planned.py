"""Seconds of generation and of updates from a spec and GPUs, as `l4spec plan` knows them."""

from dataclasses import dataclass

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.spec.recipe.rollouts import RolloutSpec
from planners.plan import plan
from planners.plan_types import Plan
from planners.recipes.rl.setup import DecodeTimes
from planners.request import PlanRequest

DEFAULTS = RolloutSpec()


@dataclass(frozen=True, slots=True)
class PlannedDecode:
    """Times of one replica, the most sequences it holds, and whether times are estimates or only bounds."""

    times: DecodeTimes
    slots: int
    is_bound: bool


def planned_decode(
    graph: LayerGraph, gpus: str, context: int, longest: int, rollouts: RolloutSpec = DEFAULTS
) -> PlannedDecode:
    """A replica on `gpus`, with sequences of `context` tokens in the mean and room for `longest` in one of them.

    Sizes double up to the slots of `rollouts`, or to the GPUs' capacity. Raises UserError where not one sequence fits.
    """
    known: list[tuple[int, float]] = []
    is_bound = False
    size, slots = 1, rollouts.slots
    while size <= slots:
        answer = _plan(graph, gpus, min(context, longest), size, rollouts)
        seconds, bound = _seconds(answer)
        if answer.fits is False:
            break
        known.append((size, seconds))
        is_bound |= bound
        size = size * 2 if size * 2 <= slots or size == slots else slots
    if not known or _plan(graph, gpus, longest, 1, rollouts).fits is False:
        raise UserError(f"{gpus} do not hold {graph.name} and an answer of {longest:,} tokens", hint="more of them")
    sizes, times = zip(*known, strict=True)
    return PlannedDecode(DecodeTimes(sizes, times), sizes[-1], is_bound)


def _plan(graph: LayerGraph, gpus: str, context: int, batch: int, rollouts: RolloutSpec) -> Plan:
    asked = PlanRequest(gpus=gpus, context=context, batch=batch, quantization=rollouts.quantization)
    return plan(graph, asked)


def _seconds(answer: Plan) -> tuple[float, bool]:
    decode = None if answer.latency is None else answer.latency.decode
    if decode is None:
        reason = None if answer.latency is None else answer.latency.reason
        raise UserError(f"a decode step cannot be timed: {reason or 'no GPUs were given'}")
    estimate = decode.estimate_seconds
    return (decode.bound_seconds, True) if estimate is None else (estimate, False)
