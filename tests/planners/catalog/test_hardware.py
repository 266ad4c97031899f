"""What holds for every machine in the catalogue, and the figures that plans are checked against."""

import pytest

from l4spec.errors import UserError
from l4spec.report.listings import listing
from l4spec.report.page import to_text
from l4spec.units import GiB
from planners.catalog import hardware, shipped_names
from planners.plan import plan
from tests.planners.models import graph

ALL = shipped_names("hardware")


@pytest.mark.parametrize("name", ALL)
def test_fp8_and_int8_run_at_twice_the_rate_of_bf16_and_fp4_at_least_at_twice_the_rate_of_fp8(name: str) -> None:
    peaks = hardware(name).peaks
    if peaks.bf16 and peaks.fp8:
        assert peaks.fp8.value / peaks.bf16.value == pytest.approx(2, rel=0.02)
    if peaks.fp4 and peaks.fp8:
        assert peaks.fp4.value >= 2 * peaks.fp8.value  # more where fp8 adds up in fp32 at half rate: GeForce, RTX PRO
    if peaks.bf16 and peaks.int8:
        assert peaks.int8.value >= 1.98 * peaks.bf16.value


@pytest.mark.parametrize("name", ALL)
def test_narrower_floats_are_never_slower(name: str) -> None:
    peaks = hardware(name).peaks
    rates = [peak.value for peak in (peaks.fp32, peaks.tf32, peaks.bf16, peaks.fp8, peaks.fp4) if peak is not None]
    assert rates == sorted(rates)
    assert (peaks.bf16 and peaks.bf16.value) == (peaks.fp16 and peaks.fp16.value)


@pytest.mark.parametrize("name", ALL)
def test_links_and_memory_are_ordered_as_in_every_real_machine(name: str) -> None:
    machine = hardware(name)
    links = machine.links
    if links.intra_host:
        assert links.intra_host.value < machine.memory.bandwidth.value
    if links.intra_host and links.inter_host:
        assert links.inter_host.value < links.intra_host.value
    usable, free = machine.usable, machine.memory.free_before_load
    assert free is None or free.value < usable.num_bytes
    nominal = machine.memory.nominal.value
    least = 0.6 if "shared with the system" in (machine.memory.nominal.note or "") else 0.95
    assert nominal * least < usable.num_bytes < nominal * 1.08, "a GB of a datasheet is somewhere between GB and GiB"


def test_physical_memory_is_used_where_it_was_measured_and_otherwise_said_to_be_nominal() -> None:
    h100 = hardware("h100").usable
    assert h100.origin == "program"
    assert h100.num_bytes == round(79.19 * GiB)
    assert hardware("h100-nvl").usable.num_bytes == round(93.02 * GiB)
    free = hardware("h100").memory.free_before_load
    assert free is not None
    assert free.value == round(77.12 * GiB)
    assert hardware("b200").usable.num_bytes == round(178.35 * GiB)
    gb200 = hardware("gb200").usable
    assert gb200.origin == "datasheet"
    assert gb200.num_bytes == 186 * 10**9


def test_dense_peaks_are_dense() -> None:
    assert hardware("h100").peak("bf16").value == pytest.approx(989e12, rel=1e-3)
    assert hardware("h100").peak("fp8").value == pytest.approx(1979e12, rel=1e-3)
    assert hardware("h200").peak("bf16").value == 989.5e12
    assert hardware("b200").peak("fp4").value == 9e15


def test_a_peak_that_nobody_publishes_is_an_error_with_what_there_is() -> None:
    with pytest.raises(UserError, match=r"no dense fp8 peak is published for a100-80gb .*fp32, tf32, bf16, fp16, int8"):
        hardware("a100").peak("fp8")
    assert "fp8" not in hardware("a100").native_dtypes
    with pytest.raises(UserError, match="no dense bf16 peak is published for m3-ultra"):
        hardware("m3-ultra").peak("bf16")


def test_it_is_reported_who_states_how_much_memory_there_is() -> None:
    """A rule and a driver's total are no reading of a program."""
    origins = {name: hardware(name).usable.origin for name in shipped_names("hardware")}
    assert origins["m3-ultra"] == "rule"
    assert {name for name, origin in origins.items() if origin == "driver"} == {"l4", "a10", "rtx-pro-6000", "h20"}
    assert origins["h100-sxm"] == origins["m4-max"] == "program"
    assert origins["gb200"] == "datasheet"
    table = to_text(listing("hardware"))
    assert "measured" not in table
    assert " a rule " in table


def test_an_overhead_that_nobody_measured_on_a_device_is_unknown_not_zero() -> None:
    model = graph("compare/llama-3.1-8b")
    assert plan(model, gpus="1xL40S").memory_per_device.unknown == ("driver_and_context",)
    assert plan(model, gpus="1xH100").memory_per_device.unknown == ()
    assert "driver and context, which has not been measured on this hardware" in plan(model, gpus="1xL40S").report()
