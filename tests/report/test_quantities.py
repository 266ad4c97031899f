"""How numbers are shown: binary units for memory, decimal ones for counts, marks for estimates."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec.report import quantities
from l4spec.report.quantities import Figures
from l4spec.units import GiB, MiB, gib


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (217_283_587_072, "202.36 GiB"),
        (GiB // 10, "0.10 GiB"),
        (5 * MiB, "5.00 MiB"),
        (196_608, "192.00 KiB"),
        (12, "12 B"),
        (0, "0 B"),
        (2000 * GiB, "2,000.00 GiB"),
        (-2 * GiB, "-2.00 GiB"),
    ],
)
def test_memory_is_in_gib_until_two_decimals_would_show_nothing(num_bytes: int, text: str) -> None:
    assert gib(num_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (108_641_793_536, "108.64B"),
        (1_954_797_904_384, "1.95T"),
        (850_960_896, "850.96M"),
        (81_920, "81.92K"),
        (640, "640"),
        (0, "0"),
    ],
)
def test_parameters_are_counted_in_decimal_units(number: int, text: str) -> None:
    assert quantities.count(number) == text


def test_flops_are_shown_in_decimal_units() -> None:
    assert quantities.flops(32_275_824_640) == "32.28 GFLOP"
    assert quantities.flops(892_178_792_448_000) == "892.18 TFLOP"
    assert quantities.flops(983_040) == "983,040 FLOP"


def test_a_difference_tells_nothing_from_next_to_nothing() -> None:
    assert quantities.difference(0.0) == "0 %"
    assert quantities.difference(1e-9) == "+0 %"
    assert quantities.difference(-1e-9) == "-0 %"
    assert quantities.difference(-0.3435) == "-34.35 %"
    assert quantities.difference(0.1) == "+10.00 %"


def test_only_estimates_bear_a_mark() -> None:
    assert Figures(True).count(2 * 10**12) == "~2.00T"
    assert Figures(False).count(2 * 10**12) == "2.00T"


@given(st.integers(min_value=1, max_value=10**18))
def test_no_positive_number_is_shown_as_zero(number: int) -> None:
    for show in (gib, quantities.count, quantities.flops, quantities.whole):
        assert not show(number).startswith(("0 ", "0.00"))


@given(st.integers(min_value=GiB // 100 + 1, max_value=10**16))
def test_shown_memory_is_within_half_a_hundredth_of_a_gib(num_bytes: int) -> None:
    shown, unit = gib(num_bytes).replace(",", "").split()
    assert unit == "GiB"
    assert abs(float(shown) * GiB - num_bytes) <= 0.005 * GiB + 1


@pytest.mark.parametrize("write", [quantities.usd, quantities.amount, quantities.short_amount, quantities.per_second])
@pytest.mark.parametrize("value", [10.0**exponent * digit for exponent in range(-9, 7) for digit in (1, 4.9, 9.96)])
def test_no_amount_above_zero_reads_as_another(write: Callable[[float], str], value: float) -> None:
    """A rounding of two digits is off by 5 % at most; a price of $0.0003 is none of $0.000."""
    text = write(value).removeprefix("$").replace(",", "")
    units = {"K": 1e3, "M": 1e6}
    read = float(text.rstrip("KM")) * units.get(text[-1], 1.0)
    assert read == pytest.approx(value, rel=0.05)
