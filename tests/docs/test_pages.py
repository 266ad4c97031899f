"""The pages that a reader follows do what they say, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from l4spec.layers import specs_for
from l4spec.spec.about import About, ImageCount, PublishedScore
from l4spec.spec.claims import Claim
from l4spec.spec.model import ModelSpec, TextSpec, VisionSpec
from tests.docs.walkthrough import assert_shown, blocks_of, walk_through

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\]\(([^)#:]+)\)")


PAGES = (
    "docs/tutorial.md",
    "docs/cookbook.md",
    "docs/guide.md",
    "docs/planner.md",
    "docs/running.md",
    "docs/quantization.md",
    "docs/articles.md",
    "docs/deploy.md",
    "docs/cluster.md",
    "docs/search.md",
    "docs/sweep.md",
    "docs/simulating.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says_in_an_empty_folder(page: str, tmp_path: Path) -> None:
    assert walk_through(ROOT / page, tmp_path) >= 3


def test_the_picture_in_the_readme_is_what_the_command_draws(tmp_path: Path) -> None:
    drawn = tmp_path / "scout.svg"
    command = [sys.executable, "-m", "l4spec.cli", "graph", "scout", "--format", "svg", "--out", str(drawn)]
    subprocess.run(command, check=True, capture_output=True)
    written = ROOT / "docs" / "pictures" / "scout.svg"
    assert drawn.read_text(encoding="utf-8") == written.read_text(encoding="utf-8")


def test_the_page_on_training_does_what_it_says(tmp_path: Path) -> None:
    assert walk_through(ROOT / "docs" / "training.md", tmp_path) >= 3


def test_the_page_on_pictures_and_reports_does_what_it_says(tmp_path: Path) -> None:
    assert walk_through(ROOT / "docs" / "report.md", tmp_path) >= 2


def test_the_page_on_families_does_what_it_says(tmp_path: Path) -> None:
    assert walk_through(ROOT / "docs" / "adding-a-family.md", tmp_path) == 1


def test_the_page_on_long_prompts_does_what_it_says(tmp_path: Path) -> None:
    assert walk_through(ROOT / "docs" / "context-parallel.md", tmp_path) == 3


def test_every_page_is_in_the_index_and_every_link_leads_somewhere() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")
    assert len(pages) >= 7
    assert [page for page in pages if f"({page})" not in index] == []
    links = [(page, link) for page in (ROOT / "docs").rglob("*.md") for link in _LINK.findall(page.read_text("utf-8"))]
    assert len(links) >= 10
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def test_the_guide_names_every_kind_and_field_that_an_author_may_write() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    specs = [spec for slot in ("attention", "ffn", "norm") for spec in specs_for(slot)]
    names = {name for spec in specs for name in spec.model_fields} | set(TextSpec.model_fields)
    names |= set(About.model_fields) | set(PublishedScore.model_fields) | set(ImageCount.model_fields)
    names |= set(ModelSpec.model_fields) | set(VisionSpec.model_fields) | set(Claim.model_fields)
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", guide)) == []


def test_a_line_that_was_not_printed_is_noticed() -> None:
    assert_shown("a\n…\nc\n", "a\nb\nc\n")
    with pytest.raises(AssertionError, match="not printed"):
        assert_shown("c\na\n", "a\nb\nc\n")


README_COMMANDS = (["plan", "specs/scout.yaml", "--gpus", "8xH100"], ["measure", "tiny/scout"])


def test_the_readme_shows_what_its_commands_print() -> None:
    shown = [block.text for block in blocks_of(ROOT / "README.md") if block.language == "text"]
    for text, arguments in zip(shown, README_COMMANDS, strict=True):
        command = [sys.executable, "-m", "l4spec.cli", *arguments]
        environment = {**os.environ, "COLUMNS": "120"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert_shown(text, done.stdout)


def test_the_readme_s_python_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("True")
