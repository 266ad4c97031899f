"""Folding: nothing is lost, nothing overlaps, and a pattern is recognised however long it stands."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l4spec.report.fold import Fold, fold, runs


def unfolded(items: str) -> str:
    parts = []
    for one in fold(items):
        period = "".join(items[one.start + run.offset] * run.length for run in runs(items, one))
        parts.append(period * one.repeats)
    return "".join(parts)


@given(st.text("LGD", max_size=80), st.integers(1, 6))
def test_folds_spelled_out_are_the_sequence_itself(pattern: str, repeats: int) -> None:
    items = pattern * repeats
    assert unfolded(items) == items
    folds = fold(items)
    assert all(before.stop == after.start for before, after in pairwise(folds))
    assert sum(len(one.copies(place)) for one in folds for place in range(one.period)) == len(items)


@pytest.mark.parametrize(
    ("items", "folds"),
    [
        ("LLLG" * 12, [(4, 12)]),
        ("D" * 3 + "M" * 58, [(1, 3), (1, 58)]),
        ("DM" * 24, [(2, 24)]),
        ("LLLLLG" * 5 + "LL", [(6, 5), (1, 2)]),
        ("ABCD", [(1, 1)] * 4),
        ("", []),
    ],
)
def test_published_patterns_fold_as_people_write_them(items: str, folds: list[tuple[int, int]]) -> None:
    assert [(one.period, one.repeats) for one in fold(items)] == folds


def test_a_fold_names_all_copies_of_a_layer() -> None:
    assert list(Fold(2, 4, 3).copies(3)) == [5, 9, 13]


def test_ten_thousand_layers_in_no_pattern_are_folded_without_delay() -> None:
    items = [number * number % 9973 for number in range(10_000)]
    assert fold(items)[-1].stop == 10_000
