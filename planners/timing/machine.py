"""Machine parameters of a roofline: bandwidth, peaks by number format, and the links of a group of devices."""

from functools import lru_cache
from math import inf
from typing import NamedTuple

from l4spec.sharding.layout import Layout
from planners.catalog.hardware import Hardware
from planners.collectives.collectives import PATTERNS, Collective, ring_factor
from planners.collectives.link_tiers import between_hosts

_FALLBACK = {"fp8": "bf16", "int8": "bf16", "fp4": "fp8", "fp16": "bf16"}
"""Next wider format, to which kernels unpack on a device without a unit for the format."""


class Machine(NamedTuple):
    """One device of `hardware` in its host; `host_size` devices reach each other at the inner links."""

    hardware: Hardware
    host_size: int

    @property
    def bandwidth(self) -> float:
        """Bytes per second of device memory."""
        return self.hardware.memory.bandwidth.value

    def peak(self, dtype: str) -> float | None:
        """FLOP/s in which a matmul of this format runs, by the format itself or by a wider one; None if unpublished."""
        dtype_in_use: str | None = dtype
        while dtype_in_use is not None:
            peak = getattr(self.hardware.peaks, dtype_in_use)
            if peak is not None:
                return float(peak.value)
            dtype_in_use = _FALLBACK.get(dtype_in_use)
        return None

    def link(self, span: int) -> float | None:
        """Bytes per second and direction of one device in a group of `span` devices; None if unpublished.

        A group inside one host talks over its inner links, a wider one at the pace of the network between hosts.
        """
        links = self.hardware.links
        fabric = links.intra_host if span <= self.host_size else links.inter_host
        return None if fabric is None else float(fabric.value)


@lru_cache(maxsize=256)
def missing(machine: Machine, layout: Layout, dtypes: tuple[str, ...]) -> str | None:
    """Reason why no time can be computed: the first peak or link that is unpublished; None if all are known."""
    for dtype in dtypes:
        if machine.peak(dtype) is None:
            return f"no dense {dtype} peak is published for {machine.hardware.name}"
    for span in (layout.tp, layout.tp * layout.ep, layout.num_devices):
        if span > 1 and machine.link(span) is None:
            where = "inside a host" if span <= machine.host_size else "between hosts"
            return f"no link bandwidth {where} is known for {machine.hardware.name}"
    return None


def link_seconds(machine: Machine, layout: Layout, each: Collective) -> float:
    """Seconds that one device's links are busy with a collective: traffic inside its host, then to other hosts.

    See `planners.collectives.link_tiers`. Raises no error: ask `missing` first.
    """
    sent = ring_factor(each.operation) * each.payload * (each.ranks - 1) / each.ranks
    if each.operation == "send":
        sent = each.payload
    outside = float(between_hosts(layout, each.axis, PATTERNS.get(each.operation, "ring"), machine.host_size))
    seconds = 0.0
    for share, span in ((1 - outside, 1), (outside, machine.host_size + 1)):
        if share:
            seconds += share * sent / (machine.link(span) or inf)
    return seconds
