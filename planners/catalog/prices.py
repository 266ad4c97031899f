"""Public GPU prices per hour: dated offers, each with its source."""

from datetime import date
from typing import Annotated

from pydantic import Field

from l4spec.catalog.entry import Entry, Source
from l4spec.layers.base import AsTuple, Spec
from planners.catalog.loader import load

ON_DEMAND = "on-demand"


class GpuOffer(Spec):
    """A provider's list price of one GPU for one hour in USD, on a day; `note` has its derivation."""

    hardware: str
    provider: str
    usd_per_gpu_hour: Annotated[float, Field(gt=0)]
    date: date
    source: Source
    note: str = ""

    @property
    def origin(self) -> str:
        """Provider, date and source of the price."""
        return f"by {self.provider} on {self.date} ({self.source})"

    def __str__(self) -> str:
        return f"{self.usd_per_gpu_hour:.2f} USD {self.origin}"


class PriceList(Entry):
    """Offers of one kind: on demand, without a commitment. Hardware without an offer has no known price."""

    offers: Annotated[tuple[GpuOffer, ...], AsTuple]


def lowest_offer(hardware: str) -> GpuOffer | None:
    """The lowest listed price of a catalogue name; None if no provider in the list offers it."""
    offers = load("prices", PriceList, ON_DEMAND).offers
    ours = [offer for offer in offers if offer.hardware == hardware]
    return min(ours, key=lambda offer: offer.usd_per_gpu_hour, default=None)
