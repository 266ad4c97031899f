"""Layer patterns as letters."""

from hypothesis import given
from hypothesis import strategies as st

from l4spec.report.pattern import letters_for, shortest_period, summarize


def test_names_get_their_own_first_letter_and_never_share_one() -> None:
    assert letters_for(["local", "global", "long", None, "local"]) == {
        None: "·",
        "local": "L",
        "global": "G",
        "long": "O",
    }


@given(st.lists(st.text(alphabet="abcAB_-é0", min_size=1, max_size=4), max_size=40, unique=True))
def test_letters_are_distinct(names: list[str]) -> None:
    letters = letters_for(names)
    assert len(set(letters.values())) == len(letters) == len(names) + 1


def test_patterns_are_summarized_by_what_repeats() -> None:
    assert summarize("LLLG" * 12) == "LLLG × 12"
    assert summarize("D" * 3 + "M" * 58) == "D × 3, M × 58"
    assert summarize("M") == "M"
    assert summarize("AB" * 20 + "A") == "41 layers without a repeating pattern"


@given(st.text(alphabet="LGM", min_size=1, max_size=6), st.integers(1, 6))
def test_the_shortest_period_lays_the_whole_strip(pattern: str, repeat: int) -> None:
    strip = pattern * repeat
    period = shortest_period(strip)
    assert strip[:period] * (len(strip) // period) == strip
    assert period <= len(pattern)
    assert all(strip[:p] * (len(strip) // p) != strip for p in range(1, period))
