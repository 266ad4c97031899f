"""A plan at the lowest public list price of its GPUs, where it names none."""

from planners.catalog.cluster import parse_cluster
from planners.catalog.prices import GpuOffer, lowest_offer
from planners.request import PlanRequest


def at_list_price(request: PlanRequest) -> tuple[PlanRequest, GpuOffer | None]:
    """The request with a price, and the offer that it is from; as it is where it has one, or none is known."""
    if request.gpus is None or request.usd_per_gpu_hour is not None:
        return request, None
    offer = lowest_offer(parse_cluster(request.gpus).hardware.name)
    return (request if offer is None else request.changed(usd_per_gpu_hour=offer.usd_per_gpu_hour)), offer
