"""`l4spec train` by layouts: the losses of one process; killed and resumed, those of a run that never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from l4spec.sharding.layout import Layout
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.metrics import METRICS
from l4spec.training.recipe.worker import work
from tests.distributed.world import run_world

RECIPE = """\
l4spec: 1
kind: recipe
name: small
model: tiny/scout
set: [text.parts.moe.balance.auxiliary_loss=0.01]
data: {sources: {sums: {kind: synthetic, task: arithmetic}}}
phases:
  - {name: first, kind: pretrain, tokens: 512, context: 32, batch: 4, optimizer: {learning_rate: 0.003}}
  - {name: second, kind: distill, teacher: big, tokens: 256, context: 32, batch: 4, optimizer: {learning_rate: 0.003}}
  - {name: third, kind: rl, tokens: 128, context: 16, batch: 8, group: 4, max_answer: 3,
     optimizer: {learning_rate: 0.001}}
  - {name: fourth, kind: dpo, tokens: 128, context: 16, batch: 4, optimizer: {learning_rate: 0.001}}
teachers: {big: {model: tiny/scout}}
"""
FURTHER = """\
l4spec: 1
kind: recipe
name: further
model: tiny/deepseek
set:
  - "text.mtp={num_modules: 2, block: {attention: attention, ffn: moe}}"
  - "text.parts.moe.balance={bias_update: 0.01, auxiliary_loss: 0.01}"
data: {sources: {sums: {kind: synthetic, task: arithmetic}}}
phases:
  - {name: first, kind: pretrain, tokens: 512, context: 32, batch: 4, mtp: {weight: 0.3},
     optimizer: {learning_rate: 0.003}}
  - {name: second, kind: midtrain, tokens: 128, context: 32, batch: 4, optimizer: {learning_rate: 0.001}}
"""
HELD_OUT = [f"mtp_{name}_{depth}" for name in ("held_out_loss", "bits_per_byte", "acceptance") for depth in (1, 2)]
LAYOUTS = (Layout(dp=2), Layout(ep=2), Layout(tp=2))


class Kept:
    def set(self, key: str, value: str, /) -> None:
        """Nothing is asked for."""


def trained(rank: int, folder: str, text: str, layout: Layout) -> list[dict[str, Any]]:
    """The rows of the metrics of a run in fp64; on rank 0 alone."""
    path = Path(folder) / str(layout).replace(" ", "-")
    recipe = Path(folder) / "small.yaml"
    if rank == 0:
        recipe.write_text(text)
    else:
        time.sleep(0.5)
    work(RecipeJob(str(recipe), layout, dtype="fp64", out=path), lambda line: None, Kept())
    return read(path) if rank == 0 else []


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_phase_has_the_losses_of_one_process(layout: Layout, tmp_path: Path) -> None:
    (alone,) = run_world(1, trained, str(tmp_path), RECIPE, Layout())
    together, *_ = run_world(layout.num_devices, trained, str(tmp_path), RECIPE, layout)
    assert len(together) == len(alone) > 10
    for ours, one in zip(together, alone, strict=True):
        assert ours["step"] == one["step"]
        for key in ("loss", "gradient_norm", "held_out_loss", "reward"):
            # fp64 differs in the last digits, which Adam's first steps may magnify by 1 / eps of a tiny gradient
            expected = one.get(key)
            assert ours.get(key) == (expected and pytest.approx(expected, rel=1e-6, abs=1e-9)), (one["step"], key)
        assert {node: row["dropped"] for node, row in ours["routing"].items()} == {
            node: row["dropped"] for node, row in one["routing"].items()
        }


@pytest.mark.parametrize("layout", [*LAYOUTS, Layout(dp=2, ep=2)], ids=str)
def test_modules_of_multi_token_prediction_train_like_one_process(layout: Layout, tmp_path: Path) -> None:
    """Losses of every depth, and loads of their experts, in fp64 as above."""
    (alone,) = run_world(1, trained, str(tmp_path), FURTHER, Layout())
    together, *_ = run_world(layout.num_devices, trained, str(tmp_path), FURTHER, layout)
    assert len(together) == len(alone) == 7
    assert sum("mtp_loss_2" in row for row in alone) == 4
    for ours, one in zip(together, alone, strict=True):
        for key in ("loss", "mtp_loss_1", "mtp_loss_2", "gradient_norm", "held_out_loss", *HELD_OUT):
            expected = one.get(key)
            assert ours.get(key) == (expected and pytest.approx(expected, rel=1e-6)), (one["step"], key)
        assert ours["routing"] == one["routing"]


def test_pipeline_stages_train_like_one_process(tmp_path: Path) -> None:
    text = "\n".join(RECIPE.splitlines()[:8]) + "\n"
    (alone,) = run_world(1, trained, str(tmp_path), text.replace("set:", "# set:"), Layout())
    staged, *_ = run_world(2, trained, str(tmp_path), text.replace("set:", "# set:"), Layout(pp=2))
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (staged, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_rows_are_rounded_alike_on_every_data_parallel_rank(tmp_path: Path) -> None:
    """With a scale for each row the forward pass is that of one process, whatever rows a rank has."""
    text = "\n".join(RECIPE.splitlines()[:8]).replace("0.003}}", "0.003}, precision: {kind: fp8, scaling: rowwise}}")
    assert "fp8" in text
    (alone,) = run_world(1, trained, str(tmp_path), text + "\n", Layout())
    together, *_ = run_world(2, trained, str(tmp_path), text + "\n", Layout(dp=2))
    assert together[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-9)  # sums in fp64, in another order
    assert together[0]["fp8"]["flushed"].keys() == alone[0]["fp8"]["flushed"].keys()


def command(folder: Path, *options: str) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "l4spec", "train", "small.yaml", "--out", "run", "--save-every", "2", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.STDOUT
    return subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=out, text=True)


def test_a_run_that_was_killed_goes_on_with_the_losses_of_one_that_never_stopped(tmp_path: Path) -> None:
    text = "\n".join(RECIPE.splitlines()[:8]).replace("tokens: 512", "tokens: 3072") + "\n"
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "small.yaml").write_text(text)
    killed = command(tmp_path / "killed")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "killed" / "run" / "step-00000006").is_dir():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert killed.stdout is not None
    killed.stdout.close()
    for folder, options in ((tmp_path / "killed", ["--resume"]), (tmp_path / "whole", [])):
        output, _ = (process := command(folder, *options)).communicate(timeout=120)
        assert process.returncode == 0, output
    losses = [[row.get("loss") for row in read(tmp_path / name / "run")] for name in ("killed", "whole")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 25


LENGTHS = """\
l4spec: 1
kind: recipe
name: small
model: tiny/irope
initial_deviation: 0.08
data: {sources: {short: {kind: synthetic, task: needles, length: 32}}}
lengths: {source: short, tokens: [32, 80], documents: 16}
phases:
  - {name: first, kind: pretrain, tokens: 10240, context: 32, batch: 8, optimizer: {learning_rate: 0.01}}
"""


@pytest.mark.parametrize("layout", [Layout(dp=2), Layout(tp=2), Layout(pp=2)], ids=str)
def test_right_answers_by_length_are_those_of_one_process(layout: Layout, tmp_path: Path) -> None:
    (alone,) = run_world(1, trained, str(tmp_path), LENGTHS, Layout())
    together, *_ = run_world(2, trained, str(tmp_path), LENGTHS, layout)
    (ours,), (one,) = ([row["right"] for row in rows if row.get("event") == "lengths"] for rows in (together, alone))
    assert ours == one
    assert list(one) == ["32", "80"]
    assert all(0 < share < 1 for share in one.values())
