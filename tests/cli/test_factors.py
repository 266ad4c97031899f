"""A file of factors that `simulate --fit` wrote times steps wherever steps are timed."""

import json
from pathlib import Path

import pytest

from l4spec.report.fit_page import factors_file
from planners.simulate.fit import Errors, Fit
from planners.timing.efficiency import serving_efficiency
from tests.cli.conftest import Run


@pytest.fixture
def slow(tmp_path: Path) -> str:
    """Factors with which weights are read at half the published pace."""
    published = serving_efficiency("vllm")
    assert published is not None
    factors = published.model_copy(update={"name": "fitted", "aliases": (), "memory": published.memory / 2})
    seen = Errors(0.01, 0.0, 0.01, 10)
    path = tmp_path / "mine.yaml"
    path.write_text(factors_file(Fit(factors, seen, None, (), published)), "utf-8")
    return str(path)


def tpot(run: Run, *words: str) -> float:
    result = run(*words, "--format", "json")
    assert result.exit_code == 0, result.stderr
    return float(json.loads(result.stdout)["latency"]["time_per_output_token_seconds"])


def test_a_plan_takes_the_factors_of_a_file(run: Run, slow: str) -> None:
    asked = ("plan", "llama-3.1-8b", "--gpus", "1xH100", "--engine", "vllm")
    published, own = tpot(run, *asked), tpot(run, *asked, "--factors", slow)
    assert 1.3 < own / published < 2
    assert "factors of fitted" in run(*asked, "--factors", slow).stdout


def test_a_search_takes_them_for_every_candidate_and_says_so_in_its_plan(run: Run, slow: str) -> None:
    asked = "search llama-3.1-8b --gpus 1xH100 --prompt-tokens 1k --output-tokens 100 --concurrency 4 --format json"
    published, own = (json.loads(run(*asked.split(), *more).stdout)["ranked"][0] for more in ((), ("--factors", slow)))
    assert own["usd_per_million_output_tokens"] > 1.2 * published["usd_per_million_output_tokens"]
    assert "--factors" in own["plan"]


@pytest.mark.parametrize("text", ["name: x\n", "memory: fast\n"])
def test_a_file_without_factors_is_refused(run: Run, tmp_path: Path, text: str) -> None:
    (path := tmp_path / "wrong.yaml").write_text(text)
    result = run("plan", "llama-3.1-8b", "--gpus", "1xH100", "--engine", "vllm", "--factors", str(path))
    assert result.exit_code == 2
    assert str(path) in result.stderr


def test_training_takes_no_factors_of_an_engine(run: Run, slow: str) -> None:
    result = run("plan", "llama-3.1-8b", "--gpus", "8xH100", "--mode", "train", "--factors", slow)
    assert result.exit_code == 2
    assert "--factors" in result.stderr
