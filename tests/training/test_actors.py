"""Actors: log probabilities are those of the weights that drew each token, staleness is bounded, processes may die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from l4spec.errors import UserError
from l4spec.runtime.build import build
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.training import local_of
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.phase import RlPhase
from l4spec.training.data.mixture import Mixture, weights_of
from l4spec.training.recipe.actor_process import SEGMENT, PromptGroups, SharedWeights, draw_groups
from l4spec.training.recipe.actors import Actors
from l4spec.training.recipe.answers import answer_rows
from l4spec.training.recipe.evaluation import log_probs_of
from l4spec.training.recipe.job import RecipeJob
from l4spec.training.recipe.metrics import METRICS

ONLINE = """\
l4spec: 1
kind: recipe
name: online
model: tiny/router-softmax
data: {sources: {sums: {kind: synthetic, task: arithmetic}}}
phases:
  - {name: rl, kind: rl, tokens: STEPS, context: 16, batch: 8, group: 4, max_answer: 12,
     optimizer: {learning_rate: 0.001}, rollouts: {staleness: 1, in_order: true}}
"""


def job_of(folder: Path, steps: int = 4) -> RecipeJob:
    path = folder / "online.yaml"
    path.write_text(ONLINE.replace("STEPS", str(steps * 128)))
    return RecipeJob(str(path), Layout())


@pytest.fixture(name="job")
def _job(tmp_path: Path) -> RecipeJob:
    return job_of(tmp_path)


def model_of(job: RecipeJob) -> RankModel:
    empty = build(job.graph, "meta", job.number_format)
    return distribute(empty, job.layout, device="cpu", seed=0, train=True).eval()


def groups_of(job: RecipeJob) -> PromptGroups:
    (phase,) = job.phases
    assert isinstance(phase, RlPhase)
    data = job.loaded.recipe.data
    return PromptGroups(phase, Mixture(data, 0, job.loaded.folder), weights_of(data, phase.mixture))


@torch.no_grad()
def shift(model: RankModel, by: float) -> None:
    for parameter in model.parameters():
        local_of(parameter).add_(by)


def scored(model: RankModel, groups: PromptGroups, ids: list[list[int]]) -> list[list[float]]:
    """Log probabilities of whole answers to the first group, by one pass."""
    asked = [groups.prompt(0)] * len(ids)
    rows = answer_rows(asked, ids, len(asked[0].prompt) + groups.phase.max_answer, groups.mixture.codec.end_id)
    passes = log_probs_of(model, rows)
    return [one[labels != IGNORED].tolist() for one, labels in zip(passes, rows.labels, strict=True)]


def test_tokens_have_the_log_probabilities_of_the_weights_that_drew_them(job: RecipeJob) -> None:
    model, groups = model_of(job), groups_of(job)
    looks: list[int] = []

    def refresh() -> int:
        if looks:
            shift(model, 0.01)
        looks.append(len(looks))
        return 7 + looks[-1]

    (drawn,) = draw_groups(model, groups, [0], 0, refresh)
    ids = [list(one) for one in drawn.ids]
    assert (drawn.number, drawn.updates) == (0, 7)
    assert len(looks) == 2, "answers of 12 tokens are drawn in two segments"
    assert max(map(len, ids)) > SEGMENT
    after = scored(model, groups, ids)
    shift(model, -0.01)
    before = scored(model, groups, ids)
    for row, log_probs in enumerate(drawn.log_probs):
        expected = [*before[row][:SEGMENT], *after[row][SEGMENT:]]
        assert list(log_probs) == pytest.approx(expected, abs=1e-4)
    assert before[0][SEGMENT - 1] != pytest.approx(after[0][SEGMENT - 1], abs=1e-3), "the shift can be seen"


def test_weights_are_read_whole_or_not_at_all(job: RecipeJob) -> None:
    source, target = model_of(job), model_of(job)
    shared = SharedWeights(source)
    shared.write(source, 0)
    done = threading.Event()

    def write() -> None:
        for updates in range(1, 60):
            shift(source, 1.0)
            shared.write(source, updates)
        done.set()

    first = {name: local_of(tensor).clone() for name, tensor in target.state_dict().items()}
    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        updates = shared.read(target)
        seen.add(updates)
        for name, _ in target.named_parameters():
            moved = local_of(target.get_tensor(name)) - first[name]
            assert bool((moved.round() == updates).all()), name
    writer.join()
    assert seen


@pytest.fixture(name="actors")
def _actors(job: RecipeJob) -> Iterator[Actors]:
    actors = Actors(job, groups_of(job), model_of(job))
    yield actors
    actors.close()


def test_a_lost_actor_is_replaced_and_staleness_stays_bounded(actors: Actors) -> None:
    first = actors.batch(0)
    assert first.rows.metrics["staleness"] == 0
    lost = actors.actors[0].process
    lost.kill()
    for updates in (1, 2, 3):
        drawn = actors.batch(updates)
        assert len(drawn.ids) == len(drawn.asked) == 8
        assert drawn.rows.metrics["most_stale"] <= 1
        right = [scores for scores, labels in zip(drawn.rows.extras["old"], drawn.rows.labels, strict=True)]
        assert all(bool((scores <= 0).all()) for scores in right)
    assert actors.actors[0].process.pid != lost.pid
    process = actors.actors[0].process
    actors.close()
    assert not process.is_alive()


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(one) for one in text.read_text().split()] if text.exists() else []


def _is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_run_leaves_no_actor_and_goes_on(tmp_path: Path) -> None:
    job = job_of(tmp_path, steps=60)
    line = [sys.executable, "-m", "l4spec", "train", job.spec, "--out", str(tmp_path / "out"), "--save-every", "2"]
    log = tmp_path / "out" / METRICS
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= 3):
            time.sleep(0.2)
        children = _children(run.pid)
        os.kill(run.pid, signal.SIGKILL)
    assert children, "an actor was at work"
    while time.monotonic() < deadline and any(map(_is_running, children)):
        time.sleep(0.2)
    assert not any(map(_is_running, children))
    subprocess.run([*line, "--resume"], check=True, capture_output=True, timeout=120)
    rows = [json.loads(row) for row in log.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 61))
    assert all(row["most_stale"] <= 1 for row in rows if "loss" in row)


def test_actors_beside_several_ranks_are_refused(tmp_path: Path) -> None:
    job = RecipeJob(job_of(tmp_path).spec, Layout(tp=2))
    with pytest.raises(UserError, match=r"phase rl: rollouts.*actors run beside one rank on the CPU"):
        job.check()
