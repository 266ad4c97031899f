"""Recipes: shipped ones are whole, wrong ones get every problem with its place, small ones run and go on."""

import json
from pathlib import Path
from typing import Any

import pytest

from l4spec.errors import SpecError, UserError
from l4spec.library import shipped_of
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.load import load_recipe, starts_of
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.metrics import METRICS
from l4spec.training.recipe.worker import RESULT, results_of, work
from l4spec.training.routing import CollapseDetector, LayerLoad

SMALL = """\
l4spec: 1
kind: recipe
name: small
model: tiny/router-softmax
data: {sources: {sums: {kind: synthetic, task: arithmetic}}}
phases:
  - {name: first, kind: pretrain, tokens: 512, context: 32, batch: 4, optimizer: {learning_rate: 0.01}}
  - {name: second, kind: sft, tokens: 256, context: 32, batch: 4, optimizer: {learning_rate: 0.01}}
  - {name: third, kind: rl, tokens: 256, context: 16, batch: 8, group: 4, max_answer: 3, kl_weight: 0.1,
     optimizer: {learning_rate: 0.001}}
  - {name: fourth, kind: dpo, tokens: 128, context: 16, batch: 4, optimizer: {learning_rate: 0.001}}
"""


class Kept:
    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str, /) -> None:
        self.values[key] = value


def ran(folder: Path, **options: Any) -> list[str]:
    """What a run of SMALL says."""
    (folder / "small.yaml").write_text(options.pop("text", SMALL))
    job = RecipeJob(str(folder / "small.yaml"), Layout(), **options)
    job.check()
    lines: list[str] = []
    kept = Kept()
    work(job, lines.append, kept)
    results_of([kept.values[RESULT]])
    return lines


def rows(folder: Path) -> list[dict[str, Any]]:
    rows_of_file = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows_of_file]


@pytest.mark.parametrize("name", shipped_of("recipe"))
def test_a_shipped_recipe_can_be_run_in_miniature(name: str) -> None:
    job = RecipeJob(name, Layout(), scale="tiny")
    job.check()
    assert starts_of(job.phases)[""] <= 40 * len(job.phases)


def test_a_run_that_was_stopped_anywhere_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    ran(tmp_path, out=tmp_path / "whole" / "run", save_every=1)
    whole = rows(tmp_path / "whole" / "run")
    end = max(row["step"] for row in whole)
    for kept in (1, 5, 7, end - 1):  # in each phase
        parts = tmp_path / "parts" / str(kept)
        parts.mkdir()
        for folder in (tmp_path / "whole" / "run").iterdir():
            if folder.name == METRICS:
                (parts / METRICS).write_text(folder.read_text() + '{"step": 99, "half')
            elif int(folder.name.rpartition("-")[2]) <= kept:
                (parts / folder.name).symlink_to(folder)
        ran(tmp_path, out=parts, resume=True, save_every=1)
        assert rows(parts) == whole


def test_every_step_logs_its_loss_and_its_routing(tmp_path: Path) -> None:
    ran(tmp_path, out=tmp_path / "run")
    steps = [row for row in rows(tmp_path / "run") if "event" not in row]
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))
    for row in steps:
        (first, *_) = row["routing"].values()
        assert sum(first["load"]) == pytest.approx(1, abs=1e-3)  # shares are rounded to five digits
        assert 1 <= first["effective_experts"] <= 8
        assert first["max_over_mean"] >= 1
    evaluations = [row for row in rows(tmp_path / "run") if row.get("event") == "evaluation"]
    assert [row["phase"] for row in evaluations] == ["first", "second", "third", "fourth"]
    assert all(row["right"] is not None for row in evaluations[1:])


def test_a_loss_that_is_not_finite_ends_the_run_with_step_and_layer(tmp_path: Path) -> None:
    text = SMALL.replace("learning_rate: 0.01}", "learning_rate: 10.0, clip: null}").replace(
        "model: tiny", "initial_deviation: 1.0\nmodel: tiny"
    )
    (tmp_path / "small.yaml").write_text(text)
    job = RecipeJob(str(tmp_path / "small.yaml"), Layout(), dtype="fp16")
    with pytest.raises(UserError, match=r"step \d+: the loss is .*(text\.\S+ is the first layer|gradient of text\.)"):
        work(job, lambda line: None, Kept())


def test_a_wrong_recipe_gets_every_problem_with_its_place(tmp_path: Path) -> None:
    wrong = SMALL.replace("batch: 8, group: 4", "batch: 8, group: 3").replace("tokens: 512", "tokens: many")
    (tmp_path / "wrong.yaml").write_text(wrong.replace("kind: sft", "kind: sff"))
    with pytest.raises(SpecError) as caught:
        load_recipe(tmp_path / "wrong.yaml")
    assert len(caught.value.problems) >= 3
    assert all(problem.place is not None for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model: tiny/router-softmax", "model: tiny/nothing"), "no spec named"),
        (("context: 32", "context: 1000"), "is made for 512"),
        (("kind: synthetic, task: arithmetic", "kind: described, description: secret"), "only described"),
        (("data: {", "data: {tokenizer: {kind: bpe, vocab_size: 5000}, "), "needs 5000 tokens"),
        (("batch: 4, optimizer", "batch: 4, mixture: {other: 1.0}, optimizer"), "no source 'other'"),
    ],
)
def test_what_cannot_be_run_is_refused_at_its_place(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        ran(tmp_path, text=SMALL.replace(*change, 1))


def test_a_collapse_is_warned_of_once_within_a_hundred_steps_and_balance_is_not() -> None:
    detector = CollapseDetector()
    balanced, collapsed = LayerLoad((60.0,) * 8), LayerLoad((470.0, *[1.0] * 7))
    warnings = [list(detector.warnings(step, {"a": balanced, "b": balanced})) for step in range(1, 200)]
    warnings += [list(detector.warnings(step, {"a": balanced, "b": collapsed})) for step in range(200, 400)]
    warned = [step for step, rows_of_file in enumerate(warnings, start=1) if rows_of_file]
    assert len(warned) == 1
    assert 200 <= warned[0] < 300
    assert "b at step" in warnings[warned[0] - 1][0]
