"""Prices of a plan: at the given price, or at the lowest public list price of its GPUs."""

from l4spec.report.quantities import short_amount, usd
from planners.catalog.prices import lowest_offer
from planners.latency_types import Latency
from planners.plan_types import Plan


def times_of(plan: Plan) -> Latency:
    """The plan's times; empty without GPUs, and if the plan does not fit."""
    return (None if plan.fits is False else plan.latency) or Latency()


def price_of(plan: Plan) -> tuple[float, str] | None:
    """USD of a GPU for an hour, and whose price it is: the one given, or the lowest listed; None if none is."""
    if plan.cluster is None or plan.latency is None:
        return None
    if plan.latency.usd_per_gpu_hour is not None:
        return plan.latency.usd_per_gpu_hour, "as given"
    offer = lowest_offer(plan.cluster.hardware)
    return None if offer is None else (offer.usd_per_gpu_hour, offer.origin)


def output_price(plan: Plan) -> float | None:
    """USD of a million output tokens; None if no price or no rate is known."""
    price, rate = price_of(plan), times_of(plan).tokens_per_second_per_gpu
    return None if price is None or not rate else price[0] / 3600 / rate * 1e6


def run_price(plan: Plan) -> float | None:
    """USD of a training run; None without a price or a run."""
    price, hours = price_of(plan), times_of(plan).gpu_hours
    return None if price is None or hours is None else price[0] * hours


def price_facts(plan: Plan) -> tuple[tuple[str, str], ...]:
    """List price of the GPUs per hour, and of tokens or the run; nothing if a price was given."""
    if plan.cluster is None or plan.fits is False or times_of(plan).usd_per_gpu_hour is not None:
        return ()
    offer = lowest_offer(plan.cluster.hardware)
    if offer is None:
        return ()
    whose = f"at {offer.provider}'s list price of {usd(offer.usd_per_gpu_hour)} a GPU ({offer.date})"
    parts = [f"{usd(offer.usd_per_gpu_hour * plan.cluster.num_gpus)} an hour"]
    if plan.deployment.mode == "train":
        parts += [f"${short_amount(cost)} the run" for cost in (run_price(plan),) if cost is not None]
    elif times_of(plan).output_tokens is not None:
        parts += [f"{usd(cost)} a million output tokens" for cost in (output_price(plan),) if cost is not None]
    return (("price", f"{', '.join(parts)}, {whose}"),)
