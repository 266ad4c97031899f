"""Meaning of an unquoted YAML scalar, or the reason why it is refused.

Only spellings that YAML 1.1 (PyYAML) and YAML 1.2 (most editors) read alike are accepted. The others – `on`, `5e5`,
`1:30`, `010`, `1_000`, dates – mean different things to different readers, so they are refused with the spelling to
write instead.
"""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from l4spec.spec.tree import Scalar

MAX_NUMBER_LENGTH = 400
MAX_INTEGER = 2**63 - 1

_CONSTANTS: dict[str, Scalar] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_CONSTANTS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
BOOLEAN_WORDS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_NUMBER_START = frozenset("0123456789+-.")
_SPECIAL = {"=": "YAML 1.1 gives a lone '=' a meaning of its own", "<<": "YAML 1.1 reads '<<' as a merge key"}

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]*([eE][-+][0-9]+)?|\.[0-9]+([eE][-+][0-9]+)?")
_EXPONENT = r"([-+]?)([0-9]*)(?:\.([0-9]*))?[eE]([-+]?[0-9]+)"
_NOT_FINITE = re.compile(r"[-+]?\.?(inf|nan|infinity)", re.IGNORECASE)


class Trap(NamedTuple):
    """Message and hint for a scalar that is refused."""

    message: str
    hint: str


def read_plain(text: str) -> Scalar | Trap:
    """The value of an unquoted scalar – text, an integer below 2**63, a finite float, a bool or None – or a `Trap`."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] in _NUMBER_START:
        return _number(text)
    return _word(text) if len(text) <= 8 else text


def _word(text: str) -> str | Trap:
    if mend := BOOLEAN_WORDS.get(text.lower()):
        return Trap(
            f"expected a value, found {text}: a boolean in YAML 1.1, text in YAML 1.2",
            f"write {mend} or '{text}', or what else the field takes",
        )
    if _NOT_FINITE.fullmatch(text):
        return _not_finite(text)
    if text in _SPECIAL:
        return Trap(f"expected a value, found {text}: {_SPECIAL[text]}", f"quote it: '{text}'")
    return text


def _number(text: str) -> Scalar | Trap:
    if _INTEGER.fullmatch(text):
        digits = len(text.lstrip("+-"))
        if digits > 19 or abs(int(text)) > MAX_INTEGER:
            return Trap(f"expected an integer below 2**63, found one of {digits} digits", "")
        return int(text)
    if _FLOAT.fullmatch(text):
        if len(text) > MAX_NUMBER_LENGTH:
            return Trap(f"expected a number, found one of {len(text)} characters", "")
        value = float(text)
        return value if math.isfinite(value) else _not_finite(text)
    if _NOT_FINITE.fullmatch(text):
        return _not_finite(text)
    return _ambiguous(text) or text


def _not_finite(text: str) -> Trap:
    return Trap(f"expected a finite number, found {_cut(text)}", "leave the field out, or quote it if it is text")


def _ambiguous(text: str) -> Trap | None:
    """The trap in a text that starts like a number but is none, if some YAML reads it as one."""
    for pattern, why, mends in _AMBIGUOUS:
        if re.fullmatch(pattern, text):
            spellings = [mend for mend in mends(text) if isinstance(read_plain(mend), int | float)]
            write = f"write {' or '.join(spellings)}; " if spellings and len(text) <= 40 else ""
            return Trap(
                f"expected a clear value, found {_cut(text)}: {why}", f"{write}quote it if it is text: '{_cut(text)}'"
            )
    return None


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"


def _none(text: str) -> list[str]:
    return []


def _without_underscores(text: str) -> list[str]:
    return [text.replace("_", "")]


def _decimal(text: str) -> list[str]:
    digits = text.replace("_", "").lower()
    try:
        return [str(int(digits, 0))] if len(digits) <= 40 else []
    except ValueError:  # 0b12: the digits do not belong to the base
        return []


def _without_leading_zeros(text: str) -> list[str]:
    sign = text[0] if text[0] in "+-" else ""
    bare = text.removeprefix(sign).lstrip("0")
    return [sign + (bare if bare[:1].isdigit() else "0" + bare)]


def _with_leading_zero(text: str) -> list[str]:
    return [f"{text[0]}0{text[1:]}"]


def _with_full_exponent(text: str) -> list[str]:
    """`5e5` as `500000` and `5.0e+5`."""
    match = re.fullmatch(_EXPONENT, text)
    if match is None or len(text) > 40:
        return []
    sign, whole, fraction, exponent = match.groups()
    power = int(exponent)
    full = f"{sign}{whole.lstrip('0') or '0'}.{fraction or '0'}e{power:+d}"
    value = Decimal(full) if abs(power) <= 18 else Decimal("NaN")
    return [f"{value:.0f}", full] if value.is_finite() and value == value.to_integral_value() else [full]


_AMBIGUOUS: tuple[tuple[str, str, Callable[[str], list[str]]], ...] = (
    (
        r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(([Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}.*)?",
        "a date in YAML 1.1 and text in YAML 1.2",
        _none,
    ),
    (
        r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?",
        "a base-60 number in YAML 1.1 and text in YAML 1.2",
        _none,
    ),
    (r"[-+]?0[xXoObB][0-9a-fA-F_]+", "not every YAML reads it as a number", _decimal),
    (
        r"(?=[^_]*_)[-+]?[0-9.][0-9_.]*([eE][-+]?[0-9_]+)?",
        "a number in YAML 1.1 and text in YAML 1.2",
        _without_underscores,
    ),
    (
        r"[-+]?0[0-9]+(\.[0-9]*)?([eE][-+][0-9]+)?",
        "the leading zero means octal in YAML 1.1",
        _without_leading_zeros,
    ),
    (
        r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+",
        "text in YAML 1.1 and a number in YAML 1.2",
        _with_full_exponent,
    ),
    (r"[-+]\.[0-9]+", "text in YAML 1.1 and a number in YAML 1.2", _with_leading_zero),
)
"""Patterns of ambiguous scalars with the reason and the spellings to write; compiled where one is looked for."""
