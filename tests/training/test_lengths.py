"""Right answers by length: what is asked, how answers are counted, and that iRoPE reads on where RoPE does not."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from l4spec.errors import SpecError
from l4spec.layers.attention.masks import ChunkedMask
from l4spec.layers.gqa.module import GQA
from l4spec.report.length_page import length_section
from l4spec.report.page import Figure, to_text
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.data import DataSpec
from l4spec.spec.recipe.load import load_recipe
from l4spec.training.data.mixture import Mixture
from l4spec.training.data.synthetic import needles
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.lengths import LengthScore, needle_rows, num_right, scores_by_length
from l4spec.training.recipe.metrics import PhaseResult
from l4spec.training.recipe.worker import RecipeRun

GROUPS = ("ABCDE", "FGHIJ", "KLMNO", "PQRST", "UVWXY")
DATA = DataSpec.model_validate({"sources": {"far": {"kind": "synthetic", "task": "needles", "length": 64}}})


@pytest.mark.parametrize("length", [32, 33, 64, 500])
def test_every_letter_that_is_asked_for_stands_once_in_a_text_of_that_length(length: int) -> None:
    for seed in range(20):
        made = needles(random.Random(seed), length)
        text = "".join(segment.text for segment in made)
        assert len(text) == length
        body, asked = text[:-10], text[-10:]
        assert sorted(asked[::2]) == list("01234")
        for digit, letter in zip(asked[::2], asked[1::2], strict=True):
            assert letter in GROUPS[int(digit)]
            assert [one for one in body if one in GROUPS[int(digit)]] == [letter]
        assert [segment.text for segment in made if segment.learned] == list(asked[1::2])


def test_letters_stand_anywhere_in_a_text() -> None:
    places = []
    for seed in range(400):
        text = "".join(segment.text for segment in needles(random.Random(seed), 210))
        places += [place / 200 for place, letter in enumerate(text[:200]) if letter.isupper()]
    assert len(places) == 5 * 400
    deviation = (1 / 12 / len(places)) ** 0.5  # of the mean of so many uniform draws
    assert sum(places) / len(places) == pytest.approx(0.5, abs=4 * deviation)


def test_rows_ask_for_the_answers_alone_and_are_those_of_no_training_step() -> None:
    mixture = Mixture(DATA, 0, Path())
    batch = needle_rows(mixture, "far", 128, range(4))
    assert batch.input_ids.shape == batch.labels.shape == (4, 127)
    assert ((batch.labels != IGNORED).sum(dim=1) == 5).all()
    asked = mixture.codec.decode(batch.labels[batch.labels != IGNORED].tolist())
    assert set(asked) <= set("".join(GROUPS))
    trained = mixture.batch(0, 64, 64, {"far": 1.0})
    same = needle_rows(mixture, "far", 64, range(64))
    texts = {tuple(row) for row in trained.input_ids[:, :63].tolist()}
    assert not texts & {tuple(row) for row in same.input_ids.tolist()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As `l4spec train` does for narrow models: two threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_of(**change: Any) -> RecipeRun:
    return RecipeRun(RecipeJob("recipes/length", Layout(), threads=1, **change), lambda line: None)


def test_answers_are_counted_as_the_likeliest_tokens_of_the_logits_are() -> None:
    run = run_of(variant="iRoPE")
    batch = needle_rows(run.mixture, "long", 96, range(8))
    with torch.no_grad():
        likeliest = run.model.eval()(batch.input_ids).argmax(dim=-1)
    likely = batch.labels.where(batch.labels == IGNORED, likeliest)
    assert num_right(run.model, batch) == int(((likeliest == batch.labels) & (batch.labels != IGNORED)).sum())
    assert num_right(run.model, type(batch)(batch.input_ids, likely)) == 40


def test_lengths_are_those_that_fit_and_scores_do_not_depend_on_how_many_run_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_of(variant="iRoPE")
    assert run.recipe.lengths is not None
    test = run.recipe.lengths.model_copy(update={"documents": 3, "tokens": (64, 128, 256)})
    whole = scores_by_length(run.model, run.mixture, test, 200)
    assert [(score.tokens, score.asked) for score in whole] == [(64, 15), (128, 15)]
    monkeypatch.setattr("l4spec.training.recipe.lengths.MOST_TOKENS", 100)
    assert scores_by_length(run.model, run.mixture, test, 200) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lengths: {source: long", "lengths: {source: lnog"), "no source 'lnog'"),
        (("task: needles, length: 256", "task: stories, length: 256"), "stories has no length"),
        (("task: needles, length: 256", "task: stories"), "can not be made at any length"),
        (("tokens: [64, 128,", "tokens: [128, 64,"), "expected ascending lengths"),
        (("2048, 4096]", "2048, 8192]"), "8,192 tokens, and tiny-irope is made for 4,096"),
        (("tokens: [64,", "tokens: [8,"), "32"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_its_place(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    shipped = load_recipe("recipes/length").document.source
    assert isinstance(shipped, Path)
    text = shipped.read_text()
    assert change[0] in text
    (tmp_path / "length.yaml").write_text(text.replace(*change, 1))
    with pytest.raises(SpecError, match=message) as caught:
        RecipeJob(str(tmp_path / "length.yaml"), Layout()).check()
    assert all(problem.place is not None for problem in caught.value.problems)


def result(name: str, longest: int, shares: dict[int, float]) -> PhaseResult:
    scores = [LengthScore(tokens, share, 100) for tokens, share in shares.items()]
    return PhaseResult(name, "midtrain", 1, 1, 1.0, 1.0, 1.0, 1.0, longest=longest, lengths=scores)


def test_the_report_says_where_each_variant_breaks() -> None:
    short, long = {64: 1.0, 128: 0.5, 256: 0.2}, {64: 0.8, 128: 1.0, 256: 0.7}
    runs: dict[tuple[str | None, int], list[PhaseResult]] = {
        ("rope", 0): [result("pretrain", 64, short), result("extend", 64, short)],
        ("none", 0): [result("pretrain", 64, short), result("extend", 256, short)],
        ("irope", 0): [result("pretrain", 64, short), result("extend", 128, long)],
        ("best", 0): [result("pretrain", 64, short), result("extend", 128, dict.fromkeys(long, 0.95))],
        ("best", 1): [result("pretrain", 64, short), result("extend", 128, dict.fromkeys(long, 0.99))],
    }
    section = length_section("length", runs)
    assert section is not None
    figure = section.blocks[0]
    assert isinstance(figure, Figure)
    assert "rope: breaks at 128 tokens, 2 times the longest trained on (50% right)." in figure.about
    assert "none: has not learned to read 256 tokens, the longest trained on (20% right)." in figure.about
    assert "irope: breaks at 256 tokens, 2 times the longest trained on (70% right)." in figure.about
    assert "best: 90% right or more at all lengths from 128 to 256." in figure.about
    assert ("best", "extend", "128", "97% +- 3", "97% +- 3", "97% +- 3") in figure.table.rows
    assert len(figure.values["chart"].dots) == 12  # three lengths of four variants
    assert "irope 256" in to_text((section,))
    assert length_section("none", {(None, 0): [PhaseResult("p", "pretrain", 1, 1, 1.0, 1.0, 1.0, 1.0)]}) is None


LEARNS = """\
l4spec: 1
kind: recipe
name: learns
model: tiny/irope
set: [text.parts.global.temperature.floor_scale=32]
initial_deviation: 0.08
data: {sources: {short: {kind: synthetic, task: needles, length: 32}}}
lengths: {source: short, tokens: [32, 256], documents: 64}
phases:
  - {name: pretrain, kind: pretrain, tokens: 204800, context: 32, batch: 32, optimizer: {learning_rate: 0.005},
     schedule: {kind: cosine, warmup: 0.05, final: 0.1}}
"""


def test_a_model_trained_short_reads_eight_times_as_far_and_farther_with_a_temperature(tmp_path: Path) -> None:
    """Without positions what is asked for is right beyond the trained length, in chunks alone it is not.

    A letter of five is guessed: 0.2, +- 0.02 of 320 questions. Paired over the same questions, a difference of 0.05 is
    two deviations.
    """
    (tmp_path / "learns.yaml").write_text(LEARNS)
    run = RecipeRun(RecipeJob(str(tmp_path / "learns.yaml"), Layout(), threads=1), lambda line: None)
    (result_of_phase,) = run.run()
    short, far = result_of_phase.lengths
    assert short.right > 0.9
    assert run.recipe.lengths is not None
    layer = next(module for module in run.model.modules() if isinstance(module, GQA) and module.spec.temperature)
    layer.spec = layer.spec.model_copy(update={"temperature": None})
    short_without, far_without = scores_by_length(run.model, run.mixture, run.recipe.lengths, 256)
    assert far_without.right < far.right - 0.05
    assert far_without.right > 0.4
    assert short_without.right == pytest.approx(short.right, abs=0.01)
    layer.attention = replace(layer.attention, mask=ChunkedMask(kind="chunked", size=16))
    _, far_in_chunks = scores_by_length(run.model, run.mixture, run.recipe.lengths, 256)
    assert far_in_chunks.right < 0.35
