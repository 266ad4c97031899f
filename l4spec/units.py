"""Quantities with their unit, as YAML and the command line write them: `80 GiB`, `3.35 TB/s`, `989.4 TFLOP/s`, `9 us`.

Counts of tokens go without a unit: `1M`, `128Ki`. Of formatting only memory is here, which error messages of every
package need; other numbers are formatted in `l4spec.report.quantities`.
"""

import re
from fractions import Fraction
from typing import Annotated

from pydantic import BeforeValidator, Field

KiB, MiB, GiB, TiB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_DECIMAL = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY = {"Ki": KiB, "Mi": MiB, "Gi": GiB, "Ti": TiB, "Pi": 1 << 50}
_SMALL = {"m": Fraction(1, 10**3), "u": Fraction(1, 10**6), "µ": Fraction(1, 10**6), "n": Fraction(1, 10**9)}
_PREFIXES: dict[str, dict[str, int | Fraction]] = {
    "B": {**_DECIMAL, **_BINARY},
    "B/s": {**_DECIMAL, **_BINARY},
    "FLOP/s": {**_DECIMAL},
    "FLOP": {**_DECIMAL},
    "s": {"": 1, **_SMALL},
}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12, "ki": KiB, "mi": MiB, "gi": GiB}
_COUNT = r"([0-9]+(?:\.[0-9]+)?)(|[KMBT]|[KMG]i)\Z"
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ/]+)\s*\Z")

_MEMORY = ((GiB // 100, GiB, "GiB"), (MiB, MiB, "MiB"), (KiB, KiB, "KiB"))
"""Least number of bytes for each unit; a size that would be shown as 0.00 GiB has a smaller unit."""


def gib(num_bytes: int) -> str:
    """Memory size as text: `25.34 GiB`; sizes below 0.01 GiB in MiB, KiB or bytes."""
    for least, size, unit in _MEMORY:
        if abs(num_bytes) >= least:
            return f"{num_bytes / size:,.2f} {unit}"
    return f"{num_bytes} B"


def parse_quantity(text: object, unit: str) -> Fraction:
    """The value of `text` in base `unit` (`B`, `B/s`, `FLOP`, `FLOP/s` or `s`), exactly.

    Raises ValueError for a bare number, an unknown prefix or another unit: `80Gb` is refused, never read as 80 GB.
    """
    example = {"B": "80 GiB", "B/s": "3.35 TB/s", "FLOP/s": "989.4 TFLOP/s", "FLOP": "32.3 GFLOP", "s": "9 us"}[unit]
    match = _QUANTITY.match(text) if isinstance(text, str) and len(text) <= 64 else None
    prefixes = _PREFIXES[unit]
    if match and match[2].endswith(unit) and match[2].removesuffix(unit) in prefixes:
        return Fraction(match[1]) * prefixes[match[2].removesuffix(unit)]
    raise ValueError(f"expected a quantity in {unit} with its unit, like '{example}', found {text!r}")


def parse_bytes(text: object) -> int:
    """A whole number of bytes from `80 GiB` or `80 GB`; ValueError when it is not whole or has no unit."""
    value = parse_quantity(text, "B")
    if value.denominator != 1:
        raise ValueError(f"expected a whole number of bytes, found {text!r} = {float(value)} B")
    return int(value)


def parse_count(text: str) -> int:
    """A whole number of tokens from `8192`, `8,192`, `8_192`, `100k`, `1M`, `15T` (decimal) or `128Ki` (binary).

    Raises ValueError for anything else, and for fractions of a token.
    """
    plain = text.strip()
    if re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+|[0-9]{1,3}(_[0-9]{3})+", plain):
        plain = plain.replace(",", "").replace("_", "")
    match = re.match(_COUNT, plain, re.IGNORECASE) if len(plain) <= 40 else None
    value = Fraction(match[1]) * _COUNTS[match[2].lower()] if match else None
    if value is None or value.denominator != 1:
        shown = f"{text[:40]}…" if len(text) > 40 else text
        raise ValueError(f"expected a number of tokens like 8192, 100k, 1M or 128Ki, found {shown!r}")
    return int(value)


def _bytes(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else round(parse_quantity(value, "B"))


def _rate(unit: str) -> BeforeValidator:
    def read(value: object) -> float:
        return float(value) if isinstance(value, float) else float(parse_quantity(value, unit))

    return BeforeValidator(read)


Bytes = Annotated[int, Field(ge=0), BeforeValidator(_bytes)]
"""A byte count, written in YAML with its unit and rounded to whole bytes."""
BytesPerSecond = Annotated[float, Field(gt=0), _rate("B/s")]
FlopsPerSecond = Annotated[float, Field(gt=0), _rate("FLOP/s")]
Seconds = Annotated[float, Field(ge=0), _rate("s")]


_LONG = {"min": 60, "h": 3600, "d": 86400}
_LONG_DURATION = r"\s*([0-9]+(?:\.[0-9]+)?)\s*(min|h|d)\s*\Z"
_RATE = r"\s*([0-9]+(?:\.[0-9]+)?)\s*/\s*(s|min|h|d)\s*\Z"


def parse_duration(text: object) -> Fraction:
    """Seconds from `200 ms`, `1.5 s`, `5 min`, `2 h` or `30 d`, exactly. Raises ValueError, for a bare number too."""
    match = re.match(_LONG_DURATION, text) if isinstance(text, str) and len(text) <= 64 else None
    return Fraction(match[1]) * _LONG[match[2]] if match else parse_quantity(text, "s")


def parse_rate(text: object) -> Fraction:
    """Events per second from `4/s`, `90/min`, `2000/h` or `50000/d`, exactly. Raises ValueError for anything else."""
    match = re.match(_RATE, text) if isinstance(text, str) and len(text) <= 64 else None
    if match is None:
        raise ValueError(f"expected a rate like '4/s', '90/min' or '2000/h', found {text!r}")
    return Fraction(match[1]) / {"s": 1, **_LONG}[match[2]]


def ceil_div(count: int, size: int) -> int:
    """`count / size`, rounded up: the number of groups of `size` that cover `count`."""
    return -(-count // size)
