"""What a roofline needs of a machine: bandwidth, peaks by number format, and the links of a group of devices."""

from dataclasses import dataclass
from functools import lru_cache

from l4spec.sharding.layout import Layout
from planners.catalog.hardware import Hardware

_FALLBACK = {"fp8": "bf16", "int8": "bf16", "fp4": "fp8", "fp16": "bf16"}
"""Where a device has no unit for a format, kernels unpack to the next wider one."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One device of `hardware` in its host; `host_size` devices reach each other at the inner links."""

    hardware: Hardware
    host_size: int

    @property
    def bandwidth(self) -> float:
        """Bytes per second of device memory."""
        return self.hardware.memory.bandwidth.value

    def peak(self, dtype: str) -> float | None:
        """FLOP/s in which a matmul of this format runs, by the format itself or by a wider one; None if unpublished."""
        found: str | None = dtype
        while found is not None:
            peak = getattr(self.hardware.peaks, found)
            if peak is not None:
                return float(peak.value)
            found = _FALLBACK.get(found)
        return None

    def link(self, span: int) -> float | None:
        """Bytes per second and direction of one device in a group of `span` devices; None if unpublished.

        A group inside one host talks over its inner links, a wider one at the pace of the network between hosts.
        """
        links = self.hardware.links
        found = links.intra_host if span <= self.host_size else links.inter_host
        return None if found is None else float(found.value)


@lru_cache(maxsize=256)
def missing(machine: Machine, layout: Layout, dtypes: tuple[str, ...]) -> str | None:
    """Why no time can be told: the first peak or link that the vendor does not publish; None if all are known."""
    for dtype in dtypes:
        if machine.peak(dtype) is None:
            return f"no dense {dtype} peak is published for {machine.hardware.name}"
    for span in (layout.tp, layout.tp * layout.ep, layout.num_devices):
        if span > 1 and machine.link(span) is None:
            where = "inside a host" if span <= machine.host_size else "between hosts"
            return f"no link bandwidth {where} is known for {machine.hardware.name}"
    return None


def ring_share(devices: int) -> float:
    """Bytes that one device sends per byte of a buffer in one pass of a ring over `devices`: (p - 1) / p."""
    return (devices - 1) / devices
