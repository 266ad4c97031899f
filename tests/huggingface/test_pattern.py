"""Patterns of layers: shortest, and faithful."""

from hypothesis import given
from hypothesis import strategies as st

from l4spec.huggingface.pattern import Pattern, PatternRun, compact, laid_out

words = st.lists(st.sampled_from("abc"), max_size=80)


@given(words)
def test_a_compact_sequence_lays_out_as_it_was(items: list[str]) -> None:
    assert laid_out(compact(items)) == items


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.integers(2, 9))
def test_a_repeated_pattern_is_found(pattern: list[str], count: int) -> None:
    patterns = compact(pattern * count)
    assert len(patterns) == 1
    assert sum(run.count for run in patterns[0].runs) <= len(pattern)


def test_scout_and_deepseek_are_written_as_people_say_them() -> None:
    local, full = PatternRun("local", 3), PatternRun("global", 1)
    assert compact((["local"] * 3 + ["global"]) * 12) == (Pattern((local, full), 12),)
    dense, sparse = Pattern((PatternRun("dense", 1),), 3), Pattern((PatternRun("moe", 1),), 58)
    assert compact(["dense"] * 3 + ["moe"] * 58) == (dense, sparse)


def test_ten_thousand_layers_without_a_pattern_take_no_time() -> None:
    items = [str(i) for i in range(10_000)]
    assert laid_out(compact(items)) == items
