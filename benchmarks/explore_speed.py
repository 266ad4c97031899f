"""Time of the page of `l4spec explore` to answer a change, compared with the goal of 100 ms.

    python benchmarks/explore_speed.py
    python benchmarks/explore_speed.py --runs 50 --seed 7

Each question moves one thing, as a user does: a control to a random stop, the context, or the users; a moved option is
planned for the unchanged model, too. Times are from the question to its JSON in this process, without the browser:
medians and 95th percentiles of wall-clock time, and of processor time, since the machine may be busy. As in the server,
garbage is collected after an answer. Exit code 1 when a 95th percentile of processor time misses the goal.
"""

import argparse
import gc
import random
import statistics
import sys
import time

from l4spec.explore.controls import controls_of
from l4spec.explore.explorer import Explorer
from l4spec.explore.question import Question

MOST_SECONDS = 0.1
DEPLOYMENTS = {
    "scout": "8xh100-sxm",
    "maverick": "8xh200",
    "behemoth": "64xh100-sxm",
    "compare/deepseek-v3": "16xh200",
    "compare/qwen3-next-80b-a3b": "8xh100-sxm",
    "compare/llama-3.1-405b": "8xh200",
}


def moved(question: Question, explorer: Explorer, choose: random.Random) -> Question:
    """The question with one control, the context or the number of users moved; where the last control went is kept."""
    move = choose.choice(("field", "field", "context", "batch"))
    if move == "field":
        control = choose.choice(controls_of(explorer.parent(question.model).data))
        return question.model_copy(update={"fields": {control.path: str(choose.choice(control.stops))}})
    value = choose.randint(1_000, 100_000) if move == "context" else choose.randint(1, 256)
    return question.model_copy(update={"options": question.options | {move: str(value)}})


def first(model: str) -> Question:
    """The question with which the page begins, on hardware that suits the model."""
    options = {"gpus": DEPLOYMENTS[model], "context": "8192", "batch": "8", "output_tokens": "512"}
    return Question(model=model, options=options)


def main() -> None:
    """Print a row for each model; exit code 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    explorer, choose, missed = Explorer("scout"), random.Random(arguments.seed), False
    gc.freeze()
    gc.disable()
    print(f"{'milliseconds':<28}{'median':>8}{'p95':>8}{'CPU med':>9}{'CPU p95':>9}{'CPU max':>9}{'answers':>9}")
    for model in DEPLOYMENTS:
        asked = first(model)
        explorer.plan(asked)
        walls, works, planned = [], [], 0
        for _ in range(arguments.runs):
            asked = moved(asked, explorer, choose)
            wall, work = time.perf_counter(), time.process_time()
            planned += "plan" in explorer.plan(asked)
            walls.append(time.perf_counter() - wall)
            works.append(time.process_time() - work)
            gc.collect()
        figures = (statistics.median(walls), _p95(walls), statistics.median(works), _p95(works), max(works))
        missed = missed or figures[3] > MOST_SECONDS
        cells = "".join(
            f"{1000 * seconds:>{width}.0f}" for seconds, width in zip(figures, (8, 8, 9, 9, 9), strict=True)
        )
        print(f"{model:<28}{cells}{planned:>9}")
    sys.exit(missed)


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


if __name__ == "__main__":
    main()
