"""A toy chain of online RL, in turns and at once: its measured speed-up against the simulated one.

    python -m benchmarks.rl_chain [PAIRS]

One actor and one learner on two cores; each pair runs both modes one after the other. The simulation gets the seconds
of generation and of updates that the synchronous run of the pair showed, and predicts the asynchronous step.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from l4spec.sharding.layout import Layout
from planners.recipes.rl.events import simulate_rl
from planners.recipes.rl.lengths import AnswerLengths
from planners.recipes.rl.setup import DecodeTimes, RlSetup

BATCH, STEPS, WARM_UP, LONGEST = 32, 40, 8, 24
RECIPE = """\
l4spec: 1
kind: recipe
name: chain
model: tiny/scout
data: {{sources: {{sums: {{kind: synthetic, task: arithmetic}}}}}}
phases:
  - {{name: rl, kind: rl, tokens: {tokens}, context: 16, batch: {batch}, group: 8, max_answer: {longest},
     optimizer: {{learning_rate: 0.0001}}, rollouts: {{mode: {mode}, staleness: 1, in_order: true}}}}
"""


def measured(mode: str, folder: Path) -> tuple[float, float]:
    """Median seconds of a step, and of its waiting for answers."""
    from l4spec.training.recipe.job import RecipeJob
    from l4spec.training.recipe.metrics import METRICS

    folder.mkdir()
    recipe = folder / "chain.yaml"
    recipe.write_text(RECIPE.format(tokens=STEPS * BATCH * 16, batch=BATCH, longest=LONGEST, mode=mode))
    job = RecipeJob(str(recipe), Layout(), out=folder / "out")
    job.check()
    job.work(lambda _: None, _Store())
    lines = [json.loads(line) for line in (folder / "out" / METRICS).read_text().splitlines()]
    rows = [row for row in lines if "loss" in row][WARM_UP:]
    return median(row["seconds"] for row in rows), median(row["waited_seconds"] for row in rows)


class _Store:
    def set(self, key: str, value: str, /) -> None:
        """Nobody asks."""


def simulated(step: float, generation: float) -> float:
    """Speed-up of generating at once with the update; a batch is generated together, so all answers take its time."""
    setup = RlSetup(
        answers=BATCH,
        lengths=AnswerLengths(float(LONGEST), LONGEST, 0.0),
        replicas=1,
        slots=BATCH,
        decode=DecodeTimes((BATCH,), (generation / LONGEST,)),
        train_seconds=step - generation,
        staleness=1.0,
        in_order=True,
    )
    return step / simulate_rl(setup).step_seconds


def main(arguments: Sequence[str]) -> None:
    """Print each pair, and the medians."""
    pairs = []
    for number in range(int(arguments[0]) if arguments else 7):
        with tempfile.TemporaryDirectory() as folder:
            together, waited = measured("synchronous", Path(folder) / "synchronous")
            apart, _ = measured("asynchronous", Path(folder) / "asynchronous")
        pairs.append((together / apart, simulated(together, waited)))
        print(
            f"pair {number + 1}: in turns {1e3 * together:.0f} ms a step, of which generation {1e3 * waited:.0f}; "
            f"at once {1e3 * apart:.0f} ms; speed-up {pairs[-1][0]:.2f}, simulated {pairs[-1][1]:.2f}",
            flush=True,
        )
    real, planned = (median(column) for column in zip(*pairs, strict=True))
    print(f"median of {len(pairs)}: measured {real:.2f}, simulated {planned:.2f}, {planned / real - 1:+.0%}")


if __name__ == "__main__":
    main(sys.argv[1:])
