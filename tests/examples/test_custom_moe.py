"""examples/custom_moe does what its README says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "custom_moe"


def train(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script in `folder` on one thread: beside other processes, threads that wait for each other crawl."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE / "train.py"), *options]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def losses(printed: str) -> list[float]:
    """The losses that the script prints."""
    return [float(loss) for loss in re.findall(r"^  step +\d+  loss ([\d.]+)$", printed, re.MULTILINE)]


def test_a_short_training_lowers_the_loss_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    done = train(tmp_path, "--steps", "10", "--target", "0.7", "--out", "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(done.stdout)[-1] < 0.7 * losses(done.stdout)[0]
    assert done.stdout.count("text.layers.") == 4
    assert done.stdout.count("  expert ") == 4 * 8
    assert "read back: equal logits" in done.stdout
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert names == ["digests.json", "model.safetensors", "spec.yaml"]


@pytest.mark.slow
def test_a_loss_that_does_not_fall_is_an_error(tmp_path: Path) -> None:
    done = train(tmp_path, "--steps", "2", "--target", "0.1")
    assert done.returncode == 1
    assert "not to 0.1 of it" in done.stderr


def test_what_is_planned_is_what_is_built(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "l4spec.cli", "build", str(EXAMPLE / "balanced-moe.yaml"), "--format", "json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout)["agrees"] is True


@pytest.mark.slow
def test_two_hundred_steps_reach_what_the_readme_says_with_every_expert_busy(tmp_path: Path) -> None:
    done = train(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_, last = losses(done.stdout)
    assert first == pytest.approx(4.16, abs=0.02)  # ln 64
    assert last < 0.4 * first
    shares = [float(share) / 100 for share in re.findall(r"^  expert \d +([\d.]+)%", done.stdout, re.MULTILINE)]
    assert len(shares) == 4 * 8
    assert min(shares) > 0.5 / 8  # an expert without balancing gets next to nothing
