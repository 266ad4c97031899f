"""The other commands: what they print and how they leave."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_ls_lists_the_shipped_specs(run: Run) -> None:
    result = run("ls")
    assert result.exit_code == 0
    scout = next(line for line in result.stdout.splitlines() if line.startswith("scout "))
    assert "108.64B" in scout
    assert "17.17B" in scout


@pytest.mark.parametrize(
    ("what", "word"),
    [("hardware", "h100-sxm"), ("quantization", "w4a16"), ("engines", "vllm-hybrid"), ("kinds", "gqa")],
)
def test_ls_lists_the_catalogue(run: Run, what: str, word: str) -> None:
    assert word in run("ls", what).stdout


def test_validate_says_ok(run: Run) -> None:
    result = run("validate", "scout", "tiny/maverick")
    assert result.exit_code == 0
    assert result.stdout.count(": ok") == 2


def test_validate_reports_the_problems_of_every_spec(run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("l4spec: 1\nextends: scout\ntext:\n  hiden_size: 8\n  vocab_size: -1\n")
    result = run("validate", str(bad), "scout", "nope")
    assert result.exit_code == 2
    assert "scout: ok" in result.stdout
    for word in ("bad.yaml:4:3", "did you mean 'hidden_size'", "bad.yaml:5:3", "'nope'"):
        assert word in result.stderr


def test_show_draws_the_pattern(run: Run) -> None:
    assert "LLLG × 12" in run("show", "scout").stdout


@pytest.mark.parametrize("style", ["text", "mermaid", "dot", "json"])
def test_graph_is_written_in_every_format(run: Run, style: str) -> None:
    result = run("graph", "tiny/scout", "--format", style, "--level", "op")
    assert result.exit_code == 0
    assert "gqa" in result.stdout


def test_verify_passes_on_scout_and_fails_on_the_articles(run: Run) -> None:
    good, bad = run("verify", "scout"), run("verify", "articles/scout")
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "all" in good.stdout.splitlines()[0]
    assert "do not hold" in bad.stdout.splitlines()[0]
    assert json.loads(run("verify", "scout", "--format", "json").stdout)["holds"] is True


def test_an_override_can_break_a_claim(run: Run) -> None:
    assert run("verify", "scout", "--set", "text.parts.moe.num_experts=17").exit_code == 1


def test_reports_are_written_to_files(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = run("plan", "scout", "--format", "json", "--out", str(out))
    assert result.exit_code == 0
    assert result.stdout == ""
    assert str(out) in result.stderr
    assert json.loads(out.read_text())["params"]["total"] == 108_641_793_536


def test_a_plan_that_does_not_fit_is_still_written(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "plan.txt"
    assert run("plan", "scout", "--gpus", "1xH100", "--out", str(out)).exit_code == 3
    assert "does not fit" in out.read_text()


def test_an_existing_file_is_overwritten_only_by_force(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "spec.json"
    out.write_text("mine")
    assert run("schema", "--out", str(out)).exit_code == 2
    assert out.read_text() == "mine"
    assert run("schema", "--out", str(out), "--force").exit_code == 0
    assert json.loads(out.read_text())["title"] == "l4spec model"
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


def test_the_version_is_printed(run: Run) -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("l4spec ")
