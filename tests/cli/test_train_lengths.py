"""`l4spec train --svg`: right answers by length as a picture, refused before hours that could not be drawn."""

from pathlib import Path

import pytest

from tests.cli.conftest import Run

SHORT = """\
l4spec: 1
kind: recipe
name: short
model: tiny/irope
data: {sources: {short: {kind: synthetic, task: needles, length: 32}}}
lengths: {source: short, tokens: [32, 64], documents: 4}
phases:
  - {name: pretrain, kind: pretrain, tokens: 512, context: 32, batch: 8, optimizer: {learning_rate: 0.005}}
"""


@pytest.mark.parametrize(
    ("recipe", "name", "message"),
    [
        ("recipes/collapse", "new.svg", "collapse asks at no lengths"),
        ("recipes/length", "there.svg", "there.svg exists"),
        ("recipes/length", "none/new.svg", "is no folder"),
    ],
)
def test_a_picture_that_cannot_be_is_refused_before_anything_is_trained(
    recipe: str, name: str, message: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "there.svg").touch()
    result = run("train", recipe, "--svg", str(tmp_path / name))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["there.svg"]


def test_two_ways_to_compute_again_are_refused(run: Run) -> None:
    result = run("train", "recipes/collapse", "--recompute", "--checkpointing", "selective")
    assert result.exit_code == 2
    assert "--recompute: is --checkpointing full, beside selective" in result.stderr


def test_a_run_shows_and_draws_its_curves(run: Run, tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text(SHORT)
    svg = tmp_path / "curves.svg"
    result = run(
        "train", str(tmp_path / "short.yaml"), "--repeats", "2", "--checkpointing", "selective", "--svg", str(svg)
    )
    assert result.exit_code == 0, result.stderr
    assert "trained to" in result.stdout
    assert svg.read_text().count("<circle") == 2  # two lengths
