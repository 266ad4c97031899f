"""What modules of multi-token prediction come to on held-out text, by depth: losses, drafts, rows and tables."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from l4spec.report.page import to_text
from l4spec.report.training import RecipeRuns, training_page
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.sharding.layout import Layout
from l4spec.training.loop import TrainBatch
from l4spec.training.recipe.evaluation import evaluate
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.metrics import PhaseResult
from l4spec.training.recipe.worker import RESULT, results_of, work
from tests.training.test_mtp import RECIPE, TEXT, Kept, Reference, batch, made, ran


def test_held_out_scores_of_modules_are_those_of_the_formula() -> None:
    """Losses of every depth, and how many drafts are the model's own choice where those before them were.

    Of so few tokens random modules choose the model's now and then.
    """
    model = made(TEXT | {"vocab_size": 3})
    ids, labels, documents = batch()
    ids, labels = ids % 3, labels.where(labels == IGNORED, labels % 3)
    result = evaluate(model, TrainBatch(ids, labels, {"sequence_ids": documents}), 2.0, modules=True)
    reference = Reference(model)
    with torch.no_grad():
        main, *further = (float(loss) for loss in reference.losses(ids, labels, documents))
        compared, accepted = _drafts(reference, ids, labels, documents)
    assert result.loss == pytest.approx(main, rel=1e-12)
    assert [score.loss for score in result.depths] == pytest.approx(further, rel=1e-12)
    for score, asked, right in zip(result.depths, compared, accepted, strict=True):
        assert score.bits_per_byte == pytest.approx(score.loss / math.log(2) / 2)
        assert score.acceptance == right / max(asked, 1)
    assert compared[0] > accepted[0] >= compared[1] > accepted[1] > 0
    plain = evaluate(model, TrainBatch(ids, labels, {"sequence_ids": documents}), 2.0)
    assert (plain.loss, plain.depths) == (result.loss, ())


def _drafts(reference: Reference, ids: Tensor, labels: Tensor, documents: Tensor) -> tuple[list[int], list[int]]:
    """Drafts that are compared and accepted, by module, one document at a time."""
    compared, accepted = [0, 0], [0, 0]
    for row in range(len(ids)):
        for document in set(documents[row].tolist()):
            inside = documents[row] == document
            answers, choices = labels[row][inside], [x.argmax(-1) for x in reference.logits(ids[row][inside])]
            for place in range(len(answers)):
                for depth in (1, 2):
                    if place + depth >= len(answers) or answers[place + depth] == IGNORED:
                        break
                    compared[depth - 1] += 1
                    if choices[depth][place] != choices[0][place + depth]:
                        break
                    accepted[depth - 1] += 1
    return compared, accepted


def test_a_module_that_is_the_model_has_all_drafts_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the model's own logits, shifted, in place of a module's."""
    model = made(TEXT)
    ids, labels, documents = batch()
    own = model(ids, sequence_ids=documents)

    def perfect(ids: Tensor, score: Callable[[int, Tensor], Tensor], **_: Any) -> tuple[Tensor, ...]:
        return tuple(score(depth, own.roll(-depth, dims=1)) for depth in range(3))

    monkeypatch.setattr(model, "run_with_modules", perfect)
    result = evaluate(model, TrainBatch(ids, labels, {"sequence_ids": documents}), 1.0, modules=True)
    assert [score.acceptance for score in result.depths] == [1.0, 1.0]


def test_the_table_has_a_row_for_each_module(tmp_path: Path) -> None:
    """And metrics a number of each, after the phase that trains them alone."""
    results: list[PhaseResult] = []
    rows = ran(tmp_path / "run", RECIPE, results=results)
    first, second = (row for row in rows if row.get("event") == "evaluation")
    assert not any(key.startswith("mtp") for key in second)
    (trained, after), names = results, ("held_out_loss", "bits_per_byte", "acceptance")
    assert after.depths == ()
    for depth, score in enumerate(trained.depths, start=1):
        numbers = score.loss, score.bits_per_byte, score.acceptance
        assert tuple(first[f"mtp_{name}_{depth}"] for name in names) == numbers
    text = to_text(training_page(RecipeRuns("further", {(None, 0): results, (None, 1): results}, {})))
    assert "modules of multi-token prediction" in text
    shares = [score.acceptance for score in trained.depths]
    assert f"{1 + shares[0] + shares[0] * shares[1]:.3f} +- 0.000" in text


def test_drafts_of_trained_modules_are_accepted(tmp_path: Path) -> None:
    """More often than the commonest byte comes: about one in six of English text is a space."""
    job = RecipeJob("recipes/drafts", Layout(), variant="with modules", overrides=("phases.0.tokens=40960",))
    assert job.phases[0].num_steps == 40
    kept = Kept()
    work(job, lambda line: None, kept)
    (result,) = results_of([kept.results[RESULT]])
    assert all(score.acceptance > 1 / 3 for score in result.depths)


def test_the_modules_loss_falls_on_text(tmp_path: Path) -> None:
    """From log 512 = 6.24 nats to below the entropy of single letters of English, 2.9 nats (Shannon 1951: 4.1 bits)."""
    text = RECIPE.replace("tokens: 512", "tokens: 5k").partition("  - {name: second")[0]
    steps = [row for row in ran(tmp_path / "run", text) if "event" not in row]
    for depth in (1, 2):
        losses = [row[f"mtp_loss_{depth}"] for row in steps]
        thirds = [sum(losses[start : start + 13]) / 13 for start in (0, 13, 26)]
        assert losses[0] == pytest.approx(6.24, abs=0.2)
        assert all(later < before for before, later in pairwise(thirds))
        assert thirds[-1] < 2.9
