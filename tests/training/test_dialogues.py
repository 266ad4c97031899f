"""Dialogues of one's own: what a line says is what is learned, and a wrong line is named."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.sharding.layout import Layout
from l4spec.training.data.dialogues import dialogues_of
from l4spec.training.recipe.answers import prompts, right_answer, wrong_answer
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.worker import RecipeRun
from l4spec.training.step_folders import STEP

RECIPE = """\
l4spec: 1
kind: recipe
name: own
model: tiny/router-softmax
data: {sources: {own: {kind: dialogues, files: [own.jsonl]}}, held_out: 0.25}
phases:
  - {name: last, kind: KIND, tokens: 128, context: 16, batch: 4, optimizer: {learning_rate: 0.001}}
"""
ROWS = "".join(f'{{"prompt": "{n}?", "answer": "yes {n}", "rejected": "no {n}"}}\n' for n in range(8))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def job_of(
    folder: Path, kind: str, rows: str = ROWS, weights: Path | None = None, out: Path | None = None
) -> RecipeJob:
    (folder / "own.jsonl").write_text(rows)
    (folder / "own.yaml").write_text(RECIPE.replace("KIND", kind))
    job = RecipeJob(str(folder / "own.yaml"), Layout(), weights=weights, out=out)
    job.check()
    return job


def run_of(job: RecipeJob) -> RecipeRun:
    run = RecipeRun(job, lambda line: None)
    run.run()
    return run


def test_the_answer_alone_is_learned_and_the_last_dialogues_never(tmp_path: Path) -> None:
    run = RecipeRun(job_of(tmp_path, "sft"), lambda line: None)
    batch = run.mixture.batch(0, 8, 64, {"own": 1.0}, answers_only=True)
    codec = run.mixture.codec
    learned = codec.decode(batch.labels[batch.labels != IGNORED].tolist())
    assert "yes" in learned
    assert "?" not in learned
    texts = codec.decode(batch.input_ids.flatten().tolist())
    assert "5?" in texts
    assert "6?" not in texts
    assert "7?" not in texts


def test_preferences_are_those_of_the_file(tmp_path: Path) -> None:
    mixture = RecipeRun(job_of(tmp_path, "dpo"), lambda line: None).mixture
    for one in prompts(mixture, {"own": 1.0}, 8, "key", is_held_out=False):
        number = mixture.codec.decode(one.prompt).removesuffix("?")
        assert mixture.codec.decode(right_answer(mixture, one)) == f"yes {number}"
        assert mixture.codec.decode(wrong_answer(mixture, one, "key")) == f"no {number}"
    run_of(job_of(tmp_path, "dpo"))


def test_a_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    for answer in ("first", "second one"):
        file.write_text(f'{{"prompt": "a", "answer": "{answer}"}}\n' * 2)
        assert dialogues_of([str(file)], 0.5, is_held_out=False)[0][-1].text == answer


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected a JSON object"),
        ("[" * 100_000, "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ('{"prompt": "a"}', "expected a text in 'answer'"),
        ('{"prompt": "", "answer": "b"}', "expected a text in 'prompt'"),
        ('{"prompt": "a", "answer": "b", "rejected": null}', "expected a text in 'rejected'"),
        ('{"prompt": "a", "answer": "b", "reject": "c"}', "unknown field 'reject'"),
    ],
)
def test_a_line_that_is_no_dialogue_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=r"own\.jsonl:9") as caught:
        run_of(job_of(tmp_path, "sft", ROWS + line))
    assert message in str(caught.value)


def test_one_dialogue_is_too_few_and_preferences_need_two_answers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two dialogues"):
        run_of(job_of(tmp_path, "sft", ROWS.splitlines()[0]))
    with pytest.raises(UserError, match="1 dialogues of the source 'own' have no rejected answer"):
        run_of(job_of(tmp_path, "dpo", '{"prompt": "a", "answer": "b"}\n' + ROWS))


def weights_in(run: RecipeRun) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def test_a_run_starts_from_the_weights_that_it_is_given(tmp_path: Path) -> None:
    first = run_of(job_of(tmp_path, "sft", out=tmp_path / "first"))
    folder = next((tmp_path / "first").glob(f"{STEP}*"))
    second = RecipeRun(job_of(tmp_path, "dpo", weights=folder), lambda line: None)
    for name, tensor in weights_in(first).items():
        assert second.model.get_tensor(name).equal(tensor), name
    reference = second.context(second.job.phases[0]).reference
    assert all(reference.get_tensor(name).equal(tensor) for name, tensor in weights_in(first).items())


def test_a_run_goes_on_from_the_weights_that_it_began_with_alone(tmp_path: Path) -> None:
    run_of(job_of(tmp_path, "sft", out=tmp_path / "first"))
    folder = next((tmp_path / "first").glob(f"{STEP}*"))
    second = replace(job_of(tmp_path, "dpo", weights=folder, out=tmp_path / "second"), save_every=1)
    whole = weights_in(run_of(second))
    shutil.rmtree(max((tmp_path / "second").glob(f"{STEP}*")))
    with pytest.raises(UserError, match="--weights is"):
        run_of(replace(second, weights=None, resume=True))
    again = weights_in(run_of(replace(second, resume=True)))
    assert all(again[name].equal(tensor) for name, tensor in whole.items())


def test_weights_that_are_not_there_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--weights"):
        job_of(tmp_path, "sft", weights=tmp_path / "nowhere")
