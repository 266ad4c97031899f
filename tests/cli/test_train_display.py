"""`l4spec train` shows where it is: bars on a terminal, lines elsewhere, event files where TensorBoard is."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from l4spec.errors import UserError
from l4spec.sharding.layout import Layout
from l4spec.training.recipe import job as job_module
from l4spec.training.recipe.event_files import EVENTS, scalars
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.metrics import METRICS
from l4spec.training.recipe.worker import work
from tests.training.test_recipes import Kept

RECIPE = """\
l4spec: 1
kind: recipe
name: small
model: tiny/router-softmax
data: {sources: {sums: {kind: synthetic, task: arithmetic}}}
phases:
  - {name: first, kind: pretrain, tokens: 256, context: 16, batch: 4, optimizer: {learning_rate: 0.01}}
  - {name: then, kind: midtrain, tokens: 128, context: 16, batch: 4, optimizer: {learning_rate: 0.01}}
"""
NUM_STEPS = 6


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "small.yaml").write_text(RECIPE)
    return str(tmp_path / "small.yaml")


def command_of(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "l4spec", "train", *arguments]


def at_a_terminal(*arguments: str) -> str:
    """What a command prints to a terminal of 100 columns."""
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    printed = b""
    with subprocess.Popen(
        command_of(*arguments), stdout=terminal, stderr=terminal, stdin=subprocess.DEVNULL, env=environment
    ) as run:
        os.close(terminal)
        try:
            while piece := os.read(main, 65536):
                printed += piece
        except OSError:  # the other end is closed
            pass
    os.close(main)
    assert run.returncode == 0, printed.decode()
    return printed.decode()


def test_a_terminal_shows_each_phase_with_its_steps_and_the_lines_above(recipe: str) -> None:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", at_a_terminal(recipe))
    assert re.search(r"first\s.*4/4.*loss \d\.\d+", plain)
    assert re.search(r"then\s.*2/2.*loss \d\.\d+", plain)
    assert "first  step 4/4  loss" in plain
    assert "small: phases" in plain


def test_elsewhere_there_are_lines_alone(recipe: str) -> None:
    done = subprocess.run(command_of(recipe), capture_output=True, text=True, check=True)
    assert "first  step 4/4  loss" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "━" not in done.stdout


def trained(recipe: str, out: Path, *, resume: bool = False) -> None:
    job = RecipeJob(recipe, Layout(), out=out, tensorboard=True, save_every=1, resume=resume)
    job.check()
    work(job, lambda line: None, Kept())


def test_event_files_have_every_number_of_the_log(recipe: str, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained(recipe, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    events = accumulator.EventAccumulator(str(tmp_path / "run" / EVENTS))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    logged = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert losses == pytest.approx(logged, rel=2**-23)  # fp32 in the files
    assert len(losses) == NUM_STEPS
    numbers = {path for row in rows for path, _ in scalars({k: v for k, v in row.items() if k != "step"})}
    assert set(events.Tags()["scalars"]) == numbers


def test_a_run_that_goes_on_hides_the_steps_that_it_makes_again(recipe: str, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained(recipe, tmp_path / "run")
    for step in (5, 6):
        folder = tmp_path / "run" / f"step-{step:08d}"
        folder.rename(tmp_path / folder.name)
    trained(recipe, tmp_path / "run", resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / EVENTS))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, NUM_STEPS + 1))


def test_without_the_package_one_line_names_the_extra(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "is_tensorboard_there", lambda: False)
    with pytest.raises(UserError, match=r"l4spec\[tensorboard\]"):
        RecipeJob(recipe, Layout(), out=tmp_path / "run", tensorboard=True).check()
    assert not (tmp_path / "run").exists()


def test_event_files_need_a_folder(recipe: str) -> None:
    with pytest.raises(UserError, match="--tensorboard"):
        RecipeJob(recipe, Layout(), tensorboard=True).check()
