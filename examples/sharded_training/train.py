"""Train a miniature of Llama 4 Maverick on four ranks, kill one of them, and continue from the last checkpoint.

Everything is done by the command line, as on a cluster; this script reads what it prints and holds it to what it
promises.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SPEC, DTYPE = "tiny/maverick", "fp32"
SAVE_EVERY = 5
MEANT = 4
"""Exit code of a run that one of its ranks has ended."""


def command(folder: Path, steps: int, *degrees: str) -> list[str]:
    """The command line of a run that saves to `folder` and continues from what is there."""
    run = [sys.executable, "-m", "l4spec", "run", SPEC, "--dtype", DTYPE, *degrees, "--steps", str(steps)]
    return [*run, "--context", "16", "--checkpoint", str(folder), "--save-every", str(SAVE_EVERY), "--resume"]


def train(folder: Path, steps: int, *degrees: str, kill_after: int | None = None) -> tuple[int, dict[int, float]]:
    """Run, and kill rank 1 after a step; the exit code, and the loss of every step that was printed."""
    arguments = command(folder, steps, *degrees)
    print(f"$ l4spec {' '.join(arguments[3:])}")
    losses: dict[int, float] = {}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        ranks = [int(word) for word in run.stderr.readline().partition("processes")[2].split()]
        for step, loss in steps_in(run.stdout):
            losses[step] = loss
            if step == kill_after:
                print(f"  killing rank 1, process {ranks[1]}")
                os.kill(ranks[1], signal.SIGKILL)
        print("".join(f"  {line}" for line in run.stderr), end="")
    print(f"  exit code {run.returncode}")
    return run.returncode, losses


def steps_in(lines: Iterator[str]) -> Iterator[tuple[int, float]]:
    """Print every line, and give the step and loss of those that say one."""
    for line in lines:
        print(f"  {line}", end="")
        if match := re.match(r"step (\d+)  loss (\S+)", line):
            yield int(match[1]), float(match[2])


def require(is_so: bool, otherwise: str) -> None:
    """End with an error where a promise is not kept."""
    if not is_so:
        sys.exit(otherwise)


def demonstrate(folder: Path, steps: int) -> None:
    """Train, kill, resume under the same layout and under another, and compare."""
    code, before = train(folder, 100_000, "--tp", "2", "--ep", "2", kill_after=SAVE_EVERY + 2)
    require(code == MEANT, f"a run with a killed rank should end with {MEANT}, not {code}")
    last = max(before) // SAVE_EVERY * SAVE_EVERY
    goal = max(before) + steps
    code, after = train(folder, goal, "--tp", "2", "--ep", "2")
    require(code == 0, "the run does not continue")
    require(min(after) in (last + 1, last + 1 + SAVE_EVERY), f"expected to continue after step {last}")
    again = sorted(before.keys() & after.keys())
    require(all(before[step] == after[step] for step in again), "the same steps have other losses")
    print(f"steps {again} were run twice, with equal losses")
    code, other = train(folder, goal + steps, "--dp", "2")
    require(code == 0 and min(other) == goal + 1, "another layout does not continue")
    require(other[max(other)] < before[1], "the loss does not fall")
    print(f"loss {before[1]:.3f} at first, {other[max(other)]:.3f} after step {max(other)}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps of each run that continues (default 20)")
    parser.add_argument("--checkpoint", type=Path, help="keep the checkpoints in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        demonstrate(options.checkpoint or Path(folder) / "checkpoints", options.steps)


if __name__ == "__main__":
    main()
