"""Unquoted scalars mean what every YAML says they mean, or they are refused with the spelling to write."""

import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from l4spec.spec.yaml_scalars import MAX_INTEGER, Trap, read_plain

CLEAR = {
    "": None,
    "~": None,
    "null": None,
    "true": True,
    "False": False,
    "0": 0,
    "-7": -7,
    "+7": 7,
    "202048": 202048,
    "9223372036854775807": MAX_INTEGER,
    "1.0e-5": 1e-5,
    "5.0e+5": 5e5,
    "5.": 5.0,
    ".5": 0.5,
    "-0.5": -0.5,
    "gqa": "gqa",
    "80 GiB": "80 GiB",
    "1xH100-80GB": "1xH100-80GB",
    "16E": "16E",
    "2-3": "2-3",
    "1.2.3": "1.2.3",
    "not": "not",
    "infinite": "infinite",
    "...": "...",
}
TRAPS = {
    "yes": "write true",
    "On": "write true",
    "y": "write true",
    "NO": "write false",
    "off": "write false",
    "n": "write false",
    "5e5": "write 500000 or 5.0e+5",
    "109e9": "write 109000000000 or 109.0e+9",
    "1e-5": "write 1.0e-5",
    "-2E3": "write -2000 or -2.0e+3",
    "1.5e5": "write 150000 or 1.5e+5",
    "1e400": "quote it",
    "-.5": "write -0.5",
    "010": "write 10",
    "007.5": "write 7.5",
    "00": "write 0",
    "08": "write 8",
    "0o17": "write 15",
    "0x1F": "write 31",
    "-0b11": "write -3",
    "1_000": "write 1000",
    "1_0.5": "write 10.5",
    "1:30": "quote it if it is text: '1:30'",
    "190:20:30": "quote it",
    "1:30.5": "quote it",
    "2025-04-05": "quote it if it is text: '2025-04-05'",
    "2001-12-14t21:59:43.10-05:00": "quote it",
    ".nan": "leave the field out",
    "NaN": "leave the field out",
    "-.inf": "leave the field out",
    "infinity": "leave the field out",
    "1.0e+999": "leave the field out",
    "=": "quote it",
    "<<": "quote it",
}


@pytest.mark.parametrize(("text", "value"), CLEAR.items())
def test_a_clear_scalar_has_one_value(text: str, value: object) -> None:
    read = read_plain(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(("text", "mend"), TRAPS.items())
def test_a_trap_is_refused_with_its_mend(text: str, mend: str) -> None:
    trap = read_plain(text)
    assert isinstance(trap, Trap)
    assert mend in trap.hint
    assert text in trap.message


@pytest.mark.parametrize("text", [str(MAX_INTEGER + 1), f"-{MAX_INTEGER + 1}", "9" * 5000, "-" + "9" * 20])
def test_integers_beyond_63_bits_are_refused(text: str) -> None:
    trap = read_plain(text)
    assert isinstance(trap, Trap)
    assert "below 2**63" in trap.message
    assert len(trap.message) < 200


def test_numbers_of_absurd_length_are_refused() -> None:
    assert isinstance(read_plain("1." + "0" * 100_000), Trap)


@given(st.text("0123456789+-._:eExobfnaiyINFtrulsNT ~=<", max_size=12))
@example("1e5")
@example("0.e-1")
@example("-.5e+3")
@example("+.inf")
@example("1:2:3")
def test_what_is_accepted_is_what_yaml_1_1_reads_too(text: str) -> None:
    value = read_plain(text)
    if isinstance(value, Trap):
        return
    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    theirs = loader.construct_object(yaml.ScalarNode(tag, text), deep=True)
    assert theirs == value
    assert type(theirs) is type(value)


@given(
    st.from_regex(
        r"[-+]?[0-9]{1,5}(\.[0-9]{0,3})?[eE][-+]?[0-9]{1,2}|[-+]?[0-9]{1,3}_[0-9]{3}|[-+]\.[0-9]{1,4}", fullmatch=True
    )
)
def test_every_spelling_offered_is_clear_and_means_the_same(text: str) -> None:
    trap = read_plain(text)
    if not isinstance(trap, Trap) or not trap.hint.startswith("write "):
        return
    for spelling in trap.hint.removeprefix("write ").partition(";")[0].split(" or "):
        read = read_plain(spelling)
        assert isinstance(read, int | float)
        assert math.isclose(read, float(text.replace("_", "")), rel_tol=1e-15)
