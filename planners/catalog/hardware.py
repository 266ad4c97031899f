"""Hardware entries: memory, dense peaks, links, and devices per host."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, Field

from l4spec.catalog.entry import Entry, Sourced
from l4spec.errors import UserError
from l4spec.layers.base import Spec
from l4spec.spec.part import PartOf
from l4spec.units import Bytes, BytesPerSecond, FlopsPerSecond, MiB

if TYPE_CHECKING:
    from planners.catalog.cpu_profile import EagerTimes
else:
    EagerTimes = Annotated[Any, PartOf("planners.catalog.cpu_profile:EagerTimes")]

PeakDType = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4"]


def _plausible(num_bytes: int) -> int:
    if num_bytes < 64 * MiB:
        raise ValueError(f"{num_bytes} B is no device memory: write it with its unit, like '80 GiB'")
    return num_bytes


DeviceBytes = Annotated[Bytes, AfterValidator(_plausible)]
"""A device memory size; a few bytes is a forgotten unit."""


SizeOrigin = Literal["program", "driver", "rule", "datasheet"]


class PhysicalMemory(Sourced[DeviceBytes]):
    """A size of device memory with how it is known.

    `program`: printed by a program (torch, vLLM, Metal); `driver`: listed by a tool of the driver, which keeps a part
    of it; `rule`: computed by a rule that the note states.
    """

    origin: Literal["program", "driver", "rule"] = "program"


class Memory(Spec):
    """Device memory.

    `nominal` is the datasheet's size, `physical` the size that a program sees, `free_before_load` the part that driver
    and context leave free before any weight is loaded.
    """

    nominal: Sourced[DeviceBytes]
    physical: PhysicalMemory | None = None
    free_before_load: Sourced[DeviceBytes] | None = None
    bandwidth: Sourced[BytesPerSecond]
    """Peak bytes per second between memory and the compute units."""


class Peaks(Spec):
    """Dense arithmetic peaks in FLOP/s, a multiply-add counted as 2; absent where the vendor prints none.

    Rates with structured sparsity are never used: a figure printed with it is halved, and its note says so.
    """

    fp32: Sourced[FlopsPerSecond] | None = None
    tf32: Sourced[FlopsPerSecond] | None = None
    bf16: Sourced[FlopsPerSecond] | None = None
    fp16: Sourced[FlopsPerSecond] | None = None
    fp8: Sourced[FlopsPerSecond] | None = None
    int8: Sourced[FlopsPerSecond] | None = None
    fp4: Sourced[FlopsPerSecond] | None = None


class Links(Spec):
    """Bytes per second of one device in one direction: to devices of its host, to other hosts, and to host memory."""

    intra_host: Sourced[BytesPerSecond] | None = None
    inter_host: Sourced[BytesPerSecond] | None = None
    host_memory: Sourced[BytesPerSecond] | None = None
    """Absent if it is unpublished, and if host and device share one memory."""


class Capacity(NamedTuple):
    """The device memory that a plan may count on, and how it is known."""

    num_bytes: int
    origin: SizeOrigin
    source: str


class Hardware(Entry):
    """One kind of accelerator as it is sold and racked."""

    memory: Memory
    peaks: Peaks = Peaks()
    links: Links = Links()
    gpus_per_host: Sourced[Annotated[int, Field(ge=1, le=100_000)]] | None = None
    """Devices that reach each other at `links.intra_host`: a server, or a rack with one switch fabric."""
    eager: EagerTimes | None = None
    """Times of our own module, if measured by `l4spec calibrate`."""

    @property
    def usable(self) -> Capacity:
        """Physical memory where it is known, else the datasheet's decimal figure."""
        physical = self.memory.physical
        if physical is not None:
            return Capacity(physical.value, physical.origin, physical.source)
        return Capacity(self.memory.nominal.value, "datasheet", self.memory.nominal.source)

    def peak(self, dtype: PeakDType) -> Sourced[float]:
        """The dense peak for `dtype`; UserError when its vendor publishes none."""
        rate: Sourced[float] | None = getattr(self.peaks, dtype)
        if rate is None:
            known = ", ".join(self.native_dtypes)
            hint = f"it has peaks for {known}" if known else "add `peaks` in a hardware file of your own"
            raise UserError(f"no dense {dtype} peak is published for {self.name}", hint=hint)
        return rate

    @property
    def native_dtypes(self) -> tuple[PeakDType, ...]:
        """Types this device computes in at a published rate."""
        return tuple(dtype for dtype in get_args(PeakDType) if getattr(self.peaks, dtype) is not None)

    def intra_host_bandwidth(self) -> Sourced[float]:
        """Bytes per second and direction to devices of the same host; UserError when unknown."""
        return self._link(self.links.intra_host, "intra_host", "between devices of one host")

    def inter_host_bandwidth(self) -> Sourced[float]:
        """Bytes per second and direction of one device's share of the host's network; UserError when unknown."""
        return self._link(self.links.inter_host, "inter_host", "between hosts")

    def host_memory_bandwidth(self) -> Sourced[float]:
        """Bytes per second and direction between the device and its host's memory; UserError when unknown."""
        return self._link(self.links.host_memory, "host_memory", "to the host's memory")

    def _link(self, link: Sourced[float] | None, field: str, where: str) -> Sourced[float]:
        if link is None:
            hint = f"add `links.{field}` in a hardware file of your own"
            raise UserError(f"no bandwidth {where} is known for {self.name}", hint=hint)
        return link
