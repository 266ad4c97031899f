"""Formats of numbers, defined only here: GiB for memory, decimal K/M/B/T for parameters, GFLOP for FLOPs."""

from collections.abc import Iterable
from typing import NamedTuple

from l4spec.units import gib

_COUNTS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))
_FLOPS = ((10**18, "EFLOP"), (10**15, "PFLOP"), (10**12, "TFLOP"), (10**9, "GFLOP"), (10**6, "MFLOP"))
_DURATIONS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def exact_bytes(num_bytes: int) -> str:
    """Bytes to the digit: `49,152 B`."""
    return f"{num_bytes:,} B"


def count(number: int) -> str:
    """Parameters: `108.64B`, `850.96M`, `640`."""
    for size, unit in _COUNTS:
        if abs(number) >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)


def flops(number: int) -> str:
    """Floating-point operations: `32.28 GFLOP`; a multiply-add counts 2."""
    for size, unit in _FLOPS:
        if abs(number) >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,} FLOP"


def whole(number: int) -> str:
    """Tokens, sequences, layers: `8,192`."""
    return f"{number:,}"


def share(part: int, total: int) -> str:
    """A part of a whole: `88.9 %`; nothing of nothing is none."""
    return f"{100 * part / total:.1f} %" if total else "-"


def difference(relative: float) -> str:
    """A relative difference with its sign: `+0.33 %`; `0 %` when there is none at all, `+0 %` when next to none."""
    text = f"{100 * relative:+,.2f}"
    return f"{text[0]}0 %" if relative and not text.strip("+-0.") else f"{text} %" if relative else "0 %"


def seconds(value: float) -> str:
    """A duration: `1.24 s`, `12.30 ms`, `45.10 us`."""
    for size, unit in _DURATIONS:
        if abs(value) >= size:
            return f"{value / size:,.2f} {unit}"
    return "0 s" if value == 0 else f"{value * 1e9:,.2f} ns"


def usd(value: float | None) -> str:
    """Dollars: `$0.137`, `$0.0021`, `$4.20`, `$5,651,239`; a dash without a price. No price above 0 reads as 0."""
    if value is None:
        return "-"
    if value < 0.0995:
        return f"${value:.2g}"
    return f"${value:,.3f}" if value < 1 else f"${value:,.2f}" if value < 1000 else f"${value:,.0f}"


def amount(value: float) -> str:
    """Hours, days, dollars, MWh: `4,321`, `12.3`, `0.00417`: whole from a hundred on, three digits below."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def per_second(value: float) -> str:
    """Tokens a second: `1,234.5`, `0.0312`: one decimal from ten on, three digits below."""
    return f"{value:,.1f}" if value >= 9.995 else f"{value:.3g}"


def short_amount(value: float) -> str:
    """The same by the thousand: `1.23M`, `4.32K`, `12.3`."""
    return count(round(value)) if value >= 1000 else amount(value)


ESTIMATE_MARK = "~"


class Figures(NamedTuple):
    """Number formats with a mark before every number that depends on estimated fields."""

    estimated: bool

    @property
    def mark(self) -> str:
        """Mark in front of every number."""
        return ESTIMATE_MARK if self.estimated else ""

    def gib(self, num_bytes: int) -> str:
        """Memory."""
        return self.mark + gib(num_bytes)

    def exact_bytes(self, num_bytes: int) -> str:
        """Bytes to the digit."""
        return self.mark + exact_bytes(num_bytes)

    def count(self, number: int) -> str:  # type: ignore[override]  # tuple has a method of this name
        """Parameters."""
        return self.mark + count(number)

    def flops(self, number: int) -> str:
        """Floating-point operations."""
        return self.mark + flops(number)

    def whole(self, number: int) -> str:
        """Tokens, sequences, layers."""
        return self.mark + whole(number)

    def seconds(self, value: float) -> str:
        """A duration."""
        return self.mark + seconds(value)


class Marked(NamedTuple):
    """Figures for numbers that rest on the sizes of tensors alone, and for all others."""

    sizes: Figures
    work: Figures


def marked(params: Iterable[str], work: Iterable[str]) -> Marked:
    """Figures by the estimated fields that parameter counts, and that other numbers, rest on."""
    return Marked(Figures(any(params)), Figures(any(work)))
