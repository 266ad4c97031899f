"""The pages that a reader follows do what they say, in an empty folder."""

from pathlib import Path

import pytest

from tests.docs.walkthrough import assert_shown, walk_through

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["docs/tutorial.md"])
def test_a_page_does_what_it_says_in_an_empty_folder(page: str, tmp_path: Path) -> None:
    assert walk_through(ROOT / page, tmp_path) >= 5


def test_a_line_that_was_not_printed_is_noticed() -> None:
    assert_shown("a\n…\nc\n", "a\nb\nc\n")
    with pytest.raises(AssertionError, match="not printed"):
        assert_shown("c\na\n", "a\nb\nc\n")
