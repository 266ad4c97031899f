"""Counts of tokens as people write them; the quantities of YAML are tested with the catalogue that is made of them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec.units import parse_count

WRITTEN = {
    "8192": 8192,
    " 8192 ": 8192,
    "8,192": 8192,
    "1,048,576": 2**20,
    "100k": 100_000,
    "100K": 100_000,
    "1M": 10**6,
    "10m": 10**7,
    "1.5M": 1_500_000,
    "400B": 4 * 10**11,
    "15T": 15 * 10**12,
    "128Ki": 131_072,
    "128ki": 131_072,
    "1Mi": 2**20,
    "10Mi": 10_485_760,
    "0.5Ki": 512,
    "0": 0,
}


@pytest.mark.parametrize(("text", "count"), WRITTEN.items())
def test_a_count_is_decimal_by_letter_and_binary_with_an_i(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k",
        "1.0001k",
        "0.3Ki",
        "-1",
        "+1",
        "1e6",
        "1 000",
        "1,00",
        "1,0000",
        "1MB",
        "1i",
        "1Ti",
        "١",
        "nan",
        "9" * 50,
    ],
)
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number of tokens like 8192, 100k, 1M or 128Ki, found"):
        parse_count(text)


@given(st.text(max_size=60))
def test_no_text_gives_anything_but_a_count(text: str) -> None:
    with suppress(ValueError):
        assert parse_count(text) >= 0
