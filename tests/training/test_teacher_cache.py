"""Logits of a teacher are kept on disk: a hit has the losses of a run without, and wrong files are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from l4spec.errors import UserError
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.load import load_recipe
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.metrics import METRICS
from l4spec.training.recipe.worker import RecipeRun
from planners.recipes.cost import plan_recipe

RECIPE = """\
l4spec: 1
kind: recipe
name: small
model: tiny/router-softmax
data: {sources: {sums: {kind: synthetic, task: arithmetic}}}
teachers:
  other: {model: tiny/router-softmax}
phases:
  - {name: student, kind: distill, teacher: other, tokens: 256, context: 16, batch: 4, optimizer: {learning_rate: 0.01}}
"""
NUM_STEPS = 4
SETTINGS = {
    "all": (),
    "top_k": ("phases.0.top_k=5", "phases.0.temperature=0.7"),
    "reverse": ("phases.0.divergence=reverse_kl",),
    "dynamic": ("phases.0.weighting=dynamic", "phases.0.top_k=5"),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rows_of(folder: Path, changes: tuple[str, ...], cache: Path | None, seed: int = 0) -> list[dict[str, Any]]:
    """The steps of a run."""
    (folder / "small.yaml").write_text(RECIPE)
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    job = RecipeJob(str(folder / "small.yaml"), Layout(), changes, out=out, teacher_cache=cache, seed=seed)
    job.check()
    RecipeRun(job, lambda line: None).run()
    rows = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    return [row for row in rows if "event" not in row]


def files_of(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_hit_has_the_losses_of_a_run_without_a_cache(setting: str, tmp_path: Path) -> None:
    changes, cache = SETTINGS[setting], tmp_path / "cache"
    runs = [rows_of(tmp_path, changes, where) for where in (None, cache, cache)]
    numbers = [[(row["loss"], row["gradient_norm"]) for row in rows] for rows in runs]
    assert numbers[0] == numbers[1] == numbers[2]
    assert [row["teacher_cached"] for rows in runs[1:] for row in rows] == [0.0] * NUM_STEPS + [1.0] * NUM_STEPS


@pytest.mark.parametrize("setting", SETTINGS)
def test_its_bytes_are_those_planned(setting: str, tmp_path: Path) -> None:
    rows_of(tmp_path, SETTINGS[setting], tmp_path / "cache")
    kept = [load_file(file) for file in files_of(tmp_path / "cache")]
    sizes = [tensor.nbytes for tensors in kept for name, tensor in tensors.items() if name != "vocab_size"]
    (phase,) = plan_recipe(load_recipe(tmp_path / "small.yaml", SETTINGS[setting])).phases
    assert phase.teacher is not None
    assert (len(kept), sum(sizes)) == (NUM_STEPS, phase.teacher.cache_bytes)


def test_other_students_share_it_and_other_teachers_data_and_settings_do_not(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    rows_of(tmp_path, (), cache)
    shared = rows_of(tmp_path, ("phases.0.soft_weight=0.9", "phases.0.optimizer.learning_rate=0.02"), cache)
    assert all(row["teacher_cached"] for row in shared)
    for changes, seed in (
        (("teachers.other.set=[text.norm.eps=1.0e-4]",), 0),
        (("data.sources.sums.language=1",), 0),
        (("phases.0.top_k=3",), 0),
        ((), 1),
    ):
        assert not any(row["teacher_cached"] for row in rows_of(tmp_path, changes, cache, seed)), (changes, seed)
    assert len(files_of(cache)) == 5 * NUM_STEPS


def cut(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def flipped(file: Path, other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def emptied(file: Path, other: Path) -> None:
    file.write_bytes(b"")


def copied(file: Path, other: Path) -> None:
    shutil.copy(other, file)


def folder_in_its_place(file: Path, other: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "is damaged"),
        (flipped, "is damaged: its values"),
        (emptied, "is damaged"),
        (copied, "is of another teacher"),
        (folder_in_its_place, "expected a regular file"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_line(change: Any, message: str, tmp_path: Path) -> None:
    rows_of(tmp_path, (), tmp_path / "cache")
    other = tmp_path / "other"
    shutil.copy(files_of(tmp_path / "cache")[0], other)
    for file in files_of(tmp_path / "cache")[1:]:
        change(file, other)
    with pytest.raises(UserError, match=message) as caught:
        rows_of(tmp_path, (), tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_used_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE)
    (tmp_path / "file").write_text("")
    recipe = str(tmp_path / "small.yaml")
    with pytest.raises(UserError, match="no phase has a teacher"):
        RecipeJob("recipes/collapse", Layout(), teacher_cache=tmp_path / "cache").check()
    with pytest.raises(UserError, match="cannot write"):
        RecipeJob(recipe, Layout(), teacher_cache=tmp_path / "file").check()
    with pytest.raises(UserError, match="one rank reads and writes it"):
        RecipeJob(recipe, Layout(tp=3), teacher_cache=tmp_path / "cache").check()
