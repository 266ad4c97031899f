"""Fields whose YAML carries a unit: durations (`200 ms`), rates (`4/s`), counts of tokens (`2k`), bytes.

Each parses text into base units and describes itself in the JSON Schema.
"""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from l4spec.layers.base import LARGEST
from l4spec.units import parse_count, parse_duration, parse_quantity, parse_rate

_MOST_SECONDS = 3.2e9  # a century


def _schema(example: str, *, number: bool = False) -> WithJsonSchema:
    text: dict[str, Any] = {"type": "string", "examples": [example]}
    return WithJsonSchema({"anyOf": [{"type": "integer"}, text]} if number else text)


def _duration(value: object) -> object:
    return float(parse_duration(value)) if isinstance(value, str | int) else value


def _rate(value: object) -> object:
    return float(parse_rate(value)) if isinstance(value, str | int) else value


def _tokens(value: object) -> object:
    return parse_count(value) if isinstance(value, str) else value


def _bandwidth(value: object) -> object:
    return float(parse_quantity(value, "B/s")) if isinstance(value, str | int) else value


def _bytes(value: object) -> object:
    return round(parse_quantity(value, "B")) if isinstance(value, str) else value


Duration = Annotated[float, Field(ge=0, le=_MOST_SECONDS), BeforeValidator(_duration), _schema("200 ms")]
"""Seconds, written with their unit: `200 ms`, `1.5 s`, `5 min`, `1 h`."""
Rate = Annotated[float, Field(gt=0, le=1e9), BeforeValidator(_rate), _schema("4/s")]
"""Events per second, written `4/s`, `90/min` or `2000/h`."""
Tokens = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(_tokens), _schema("2k", number=True)]
"""A number of tokens: 2048, 2k, 128Ki."""
TrainTokens = Annotated[int, Field(ge=1, le=10**18), BeforeValidator(_tokens), _schema("40T", number=True)]
"""Tokens of a training: 5000, 40T."""
ByteCount = Annotated[int, Field(ge=0, le=LARGEST * 1024), BeforeValidator(_bytes), _schema("1.5 GiB")]
"""Bytes, written with their unit."""
Bandwidth = Annotated[float, Field(gt=0, le=1e18), BeforeValidator(_bandwidth), _schema("50 GB/s")]
"""Bytes per second, written with their unit."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share or a probability."""

__all__ = ["Bandwidth", "ByteCount", "Duration", "Rate", "Share", "Tokens", "TrainTokens"]
