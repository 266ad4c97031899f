"""docs/adding-a-kind.md quotes files as they are, and does what it says."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from tests.docs.walkthrough import walk_through

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding-a-kind.md"
QUOTATION = re.compile(r"^```\w+ file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def quotations() -> list[tuple[str, str]]:
    """(file, quoted text) of every block of the page that names a file."""
    return QUOTATION.findall(PAGE.read_text(encoding="utf-8"))


def is_quoted(text: str, source: str) -> bool:
    """Whether the runs of lines between `…` stand in the source, in order, each as a whole and more than blank."""
    runs = re.split(r"^ *…\n", text, flags=re.MULTILINE)
    places = [f"\n{source}".find(f"\n{run}") for run in runs]
    return all(run.strip() for run in runs) and min(places) >= 0 and all(a < b for a, b in pairwise(places))


@pytest.mark.parametrize(("file", "text"), quotations())
def test_what_the_page_quotes_stands_in_the_file(file: str, text: str) -> None:
    assert is_quoted(text, (ROOT / file).read_text(encoding="utf-8")), f"{file} has changed:\n{text}"


def test_the_page_quotes_every_file_of_the_package() -> None:
    assert len(quotations()) >= 9
    named = {Path(file).name for file, _ in quotations() if file.startswith("examples/new_kind/")}
    assert named == {"spec.py", "cost.py", "module.py", "__init__.py", "pyproject.toml", "test_short_conv.py"}


def test_a_quotation_that_differs_is_noticed() -> None:
    source = "a = 1\nb = 2\nc = 3\n"
    assert is_quoted("a = 1\n…\nc = 3\n", source)
    assert not is_quoted("a = 1\nc = 3\n", source)
    assert not is_quoted("c = 3\n…\na = 1\n", source)
    assert not is_quoted("= 2\n", source)


@pytest.mark.usefixtures("with_new_kind")
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    assert walk_through(PAGE, tmp_path) >= 3
