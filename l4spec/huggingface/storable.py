"""Limits on Hugging Face fields kept in a spec: only values that YAML holds and `l4spec validate` reads back."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from l4spec.spec.yaml_scalars import MAX_INTEGER
from l4spec.spec.yaml_tree import MAX_KEY_LENGTH, unprintable

Data = dict[str, Any]
MOST_LEVELS = 32
"""Of nesting in one field; a spec may have 64 altogether."""
MOST_VALUES = 10_000
"""In one field; a spec may have 100,000 altogether."""
MOST_BYTES = 128 << 10
"""Of text in one field; a spec may have 1 MiB altogether."""
MOST_BYTES_OF_ALL = 512 << 10
"""Of text in all fields together."""
_SECTIONS = ("text_config", "vision_config")


def storable(carried: Mapping[str, Any]) -> tuple[Data, list[str]]:
    """(fields that can be stored as plain JSON, paths of those that cannot).

    Left out are fields with control characters, integers of 64 bits and more, numbers that are not finite, keys of more
    than 200 characters, and more nesting, values or text than a spec may hold. Tuples become lists, keys text.
    """
    return _storable(carried, _Budget(MOST_BYTES_OF_ALL))


def _storable(carried: Mapping[str, Any], room: "_Budget") -> tuple[Data, list[str]]:
    kept: Data = {}
    left: list[str] = []
    for key, value in carried.items():
        if key in _SECTIONS and isinstance(value, Mapping):
            kept[key], inner = _storable(value, room)
            left += [f"{key}.{path}" for path in inner]
            continue
        copy = _Copy()
        plain = copy.of({str(key): value}, 0)
        if plain is None or not room.takes(copy.num_bytes):
            left.append(str(key)[:80])
        else:
            kept.update(plain)
    return kept, left


class _TooMuch(Exception):
    """A value that a spec cannot hold."""


@dataclass(slots=True)
class _Budget:
    """Bytes that are left for all fields together."""

    num_bytes: int

    def takes(self, num_bytes: int) -> bool:
        """Take `num_bytes` from the budget and return True if they fit, else False."""
        fits = num_bytes <= self.num_bytes
        self.num_bytes -= num_bytes if fits else 0
        return fits


class _Copy:
    """Copies one field, counting its size."""

    def __init__(self) -> None:
        self._values = self.num_bytes = 0

    def of(self, value: Data, depth: int) -> Data | None:
        """The field in plain JSON; None when a spec cannot hold it."""
        try:
            copied: Data = self._copy(value, depth)
        except _TooMuch:
            return None
        return copied

    def _copy(self, value: Any, depth: int) -> Any:
        self._values += 1
        if depth > MOST_LEVELS or self._values > MOST_VALUES:
            raise _TooMuch
        if isinstance(value, Mapping):
            return {self._text(str(key), MAX_KEY_LENGTH): self._copy(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple | set):
            return [self._copy(inner, depth + 1) for inner in list(value)]
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            if not (isfinite(value) if isinstance(value, float) else abs(value) <= MAX_INTEGER):
                raise _TooMuch
            return value
        return self._text(str(value), MOST_BYTES)

    def _text(self, text: str, longest: int) -> str:
        self.num_bytes += 6 * len(text) + 8  # a character takes at most six when it is escaped, and marks around it
        if len(text) > longest or self.num_bytes > MOST_BYTES or unprintable(text):
            raise _TooMuch
        return text
