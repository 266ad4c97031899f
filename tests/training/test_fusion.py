"""Early fusion: images stand at their places, frozen tensors stay, a run goes on exactly, pictures are looked at."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from l4spec.errors import SpecError
from l4spec.graph.build import build_graph
from l4spec.graph.trainable import trained_names
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.sharding.layout import Layout
from l4spec.spec.document import load_document
from l4spec.spec.parse import parse_spec
from l4spec.spec.recipe.data import DataSpec
from l4spec.spec.recipe.load import load_recipe
from l4spec.spec.recipe.pictures import COLORS
from l4spec.spec.resolve import resolve
from l4spec.training.data.mixture import Mixture
from l4spec.training.recipe.evaluation import log_probs_of
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.metrics import METRICS, PhaseResult
from l4spec.training.recipe.worker import RESULT, RecipeRun, results_of, work

SMALL = """\
l4spec: 1
kind: recipe
name: small
model: tiny/scout
set:
  - text.parts.local.mask.size=32
  - text.parts.moe.num_experts=4
  - "text.layers.0.blocks=[{attention: global, ffn: moe}]"
initial_deviation: 0.1
data:
  sources:
    captions: {kind: synthetic, task: pictures, pictures: left_out}
    pictures: {kind: synthetic, task: pictures}
  evaluate_sequences: 8
phases:
  - {name: language, kind: pretrain, tokens: 512, context: 64, batch: 4, mixture: {captions: 1.0}, trainable: [text],
     optimizer: {learning_rate: 0.01, weight_decay: 0.1}}
  - {name: tower, kind: pretrain, tokens: 512, context: 64, batch: 4, mixture: {pictures: 1.0}, trainable: [vision],
     optimizer: {learning_rate: 0.01, weight_decay: 0.1}}
  - {name: joint, kind: pretrain, tokens: 512, context: 64, batch: 4, optimizer: {learning_rate: 0.01}}
"""
END_OF_IMAGE = 258
IMAGE = [257, 259, 262, 262, 262, 262, END_OF_IMAGE]
"""Start, image, four patches, end: the marks follow the 257 tokens of bytes."""


class Kept:
    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str, /) -> None:
        self.values[key] = value


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def job_of(folder: Path, text: str = SMALL, **options: Any) -> RecipeJob:
    (folder / "small.yaml").write_text(text)
    return RecipeJob(str(folder / "small.yaml"), Layout(), **options)


def ran(job: RecipeJob) -> list[PhaseResult]:
    job.check()
    kept = Kept()
    work(job, lambda line: None, kept)
    return results_of([kept.values[RESULT]])


def mixture(**changes: object) -> Mixture:
    spec = DataSpec.model_validate({"sources": {"p": {"kind": "synthetic", "task": "pictures", **changes}}})
    return Mixture(spec, 3, Path(), parse_spec(load_document("tiny/scout")).vision)


@pytest.mark.parametrize("context", [40, 64, 97])
def test_whole_images_stand_before_their_captions_and_only_text_counts(context: int) -> None:
    batch = mixture().batch(0, 8, context, {"p": 1.0})
    ids, labels, tiles = batch.input_ids, batch.labels, batch.inputs["pixel_values"]
    assert tiles.shape == (int((ids == 257).sum()), 3, 28, 28)
    for row in ids.tolist():
        starts = [index for index, token in enumerate(row) if token == 257]
        assert starts[0] == 0
        assert all(row[start : start + len(IMAGE)] == IMAGE for start in starts)
    counted = labels[labels != IGNORED]
    assert int(counted.max()) <= 256  # bytes and the end of a document
    assert torch.equal(labels[:, 6], ids[:, 7])  # the end of an image is asked for the first byte of its caption


def test_a_blank_picture_changes_tiles_alone_and_one_left_out_leaves_its_marks() -> None:
    shown, blank, out = (mixture(pictures=how).batch(0, 4, 64, {"p": 1.0}) for how in ("shown", "blank", "left_out"))
    assert torch.equal(shown.input_ids, blank.input_ids)
    assert torch.equal(shown.labels, blank.labels)
    drawn, empty = shown.inputs["pixel_values"], blank.inputs["pixel_values"]
    assert drawn.shape == empty.shape
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])
    assert torch.equal(empty, empty[:1].expand_as(empty))
    assert "pixel_values" not in out.inputs
    assert out.input_ids[0, :3].tolist() == [257, 259, 258]


def test_bits_a_byte_count_bytes_of_captions_alone() -> None:
    batch, bytes_per_token = mixture().held_out(64, 64, {"p": 1.0})
    labels = int((batch.labels != IGNORED).sum())
    letters = int((batch.labels < 256).sum() - (batch.labels == IGNORED).sum())
    assert bytes_per_token == pytest.approx(letters / labels, rel=0.02)  # the last byte of a row has no label


def test_a_phase_moves_what_it_trains_and_nothing_else(tmp_path: Path, one_thread: None) -> None:
    run = RecipeRun(job_of(tmp_path, SMALL, out=tmp_path / "run"), lambda line: None)
    for phase, trained in zip(run.job.phases, (["text"], ["vision"], ["text", "vision"]), strict=True):
        before = {name: tensor.detach().clone() for name, tensor in run.model.named_parameters()}
        run._phase(phase)
        moved = {name for name, tensor in run.model.named_parameters() if not torch.equal(tensor, before[name])}
        assert {name.partition(".")[0] for name in moved} == set(trained)
        assert len(moved) == sum(name.partition(".")[0] in trained for name in before)


def test_selectors_name_beginnings_by_whole_segments() -> None:
    graph = build_graph(resolve(parse_spec(load_document("tiny/scout", ["text.tie_embeddings=true"]))))
    everything = trained_names(graph, ())
    assert trained_names(graph, ["text", "vision"]) == everything
    attention = trained_names(graph, ["text.layers.*.attention"])
    assert len(attention) == 4 * 4
    assert trained_names(graph, ["text.layers.1"]) == {name for name in everything if name.startswith("text.layers.1.")}
    assert trained_names(graph, ["text.head"]) == {"text.embedding.weight"}


def test_a_run_that_was_stopped_in_any_phase_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    ran(job_of(tmp_path, out=tmp_path / "whole", save_every=1))
    whole = rows(tmp_path / "whole")
    for kept in (1, 3, 4):
        parts = tmp_path / str(kept)
        parts.mkdir()
        (parts / METRICS).write_text((tmp_path / "whole" / METRICS).read_text())
        for folder in (tmp_path / "whole").glob("step-*"):
            if int(folder.name.rpartition("-")[2]) <= kept:
                (parts / folder.name).symlink_to(folder)
        ran(job_of(tmp_path, out=parts, resume=True, save_every=1))
        assert rows(parts) == whole


def rows(folder: Path) -> list[dict[str, Any]]:
    rows_of_file = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows_of_file]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[vision]", "[visoin]"), "visoin.*did you mean 'vision'"),
        (("[vision]", "[text.layers.7]"), "no tensor of tiny-scout is called 'text.layers.7'"),
        (("[vision]", '["vision..adapter"]'), "trainable"),
        (("tiny/scout\n", "tiny/router-softmax\n"), "no vision tower"),
        (("kind: pretrain, tokens: 512, context: 64, batch: 4, optimizer", "kind: sft, tokens: 512, context: 64, "
          "batch: 4, optimizer"), "takes no pictures"),
        (("tokens: 512, context: 64, batch: 4, mixture: {pictures", "tokens: 512, context: 7, batch: 4, mixture: "
          "{pictures"), "a picture with a caption takes more"),
        (("task: pictures, pictures", "task: stories, pictures"), "the task stories has none"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_at_its_place(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert change[0] in SMALL
    text = SMALL.replace(*change, 1)
    if "router" in change[1]:
        text = text.replace(text[text.index("set:") : text.index("initial")], "")
    with pytest.raises(SpecError, match=message) as caught:
        job_of(tmp_path, text).check()
    assert all(problem.place is not None for problem in caught.value.problems)


def test_colors_are_seen_after_a_few_steps(tmp_path: Path, one_thread: None) -> None:
    """The first byte of a caption tells its color: without the picture nobody needs less than ln 6 nats."""
    text = SMALL[: SMALL.index("phases:")] + (
        "phases:\n  - {name: joint, kind: pretrain, tokens: 40960, context: 40, batch: 16, mixture: {pictures: 1.0},"
        " optimizer: {learning_rate: 0.01}}\n"
    )
    run = RecipeRun(job_of(tmp_path, text), lambda line: None)
    run.run()
    batch, _ = run.mixture.held_out(64, 40, {"pictures": 1.0})
    losses = -log_probs_of(run.model, batch)[batch.input_ids == END_OF_IMAGE]
    tiles = batch.inputs["pixel_values"]
    swapped = replace(batch, inputs={**batch.inputs, "pixel_values": tiles.roll(1, dims=0)})
    misled = -log_probs_of(run.model, swapped)[batch.input_ids == END_OF_IMAGE]
    error = float(losses.std()) / len(losses) ** 0.5
    assert float(losses.mean()) + 4 * error < math.log(len(COLORS))
    assert float(misled.mean()) > math.log(len(COLORS))


def test_the_shipped_recipe_says_the_same_to_both_variants() -> None:
    seeing, blank = (load_recipe("recipes/fusion", variant=name).recipe for name in ("seeing", "blank"))
    assert seeing.phases == blank.phases
    assert [phase.trainable for phase in seeing.phases] == [("text",), ("vision",), ()]
