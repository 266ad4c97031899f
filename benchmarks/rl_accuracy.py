"""Compare the simulator of RL infrastructure with published step times; prints the table of docs/training.md.

    python -m benchmarks.rl_accuracy STEP_TIMES

STEP_TIMES is a CSV, a row for each published run: id, framework, model, hardware, gpus_total, gpus_train, gpus_rollout,
mode, staleness, max_len, mean_len, rollouts_per_step, step_s, gen_s, logprob_s, update_s. Factors of a workload are
fitted on its synchronous rows alone; the others are judged. Settings that a row leaves open are those of ASSUMED.
"""

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median

from l4spec.cli.request import compiled
from l4spec.layers.declaration import Work
from planners.catalog.cluster import parse_cluster
from planners.counts.flops import model_flops
from planners.recipes.rl.events import simulate_rl
from planners.recipes.rl.fit import RlFactors, SynchronousStep, fit_factors
from planners.recipes.rl.lengths import AnswerLengths
from planners.recipes.rl.planned import planned_decode
from planners.recipes.rl.setup import RlSetup

ASSUMED = {
    "mean": "where no mean length is published, the one at which synchronous updates reach 40 % of the bf16 peak",
    "answers": "8,192 answers a step if none are published",
    "spread": "log lengths deviate by 1.0",
    "split": "half of the GPUs generate if no split is published",
    "chunks": "verl's fully asynchronous rows take a batch in 4 parts (its documented setting), reqbatchN in N parts",
    "logprob": "the learner's own pass for log probabilities takes a third of the update, but where none is listed",
}
SPREAD, ANSWERS, PROMPT = 1.0, 8192, 512
PASSES = 4 / 3
"""The learner's FLOPs with its own pass for log probabilities over those of its update alone."""
UTILIZATION = 0.4
SPECS = {
    "Qwen2.5-Math-7B": ("compare/qwen2.5-7b", 1),
    "DeepSeek V3": ("compare/deepseek-v3", 32),
    "Qwen3-235B": ("compare/qwen3-235b-a22b", 16),
    "Qwen3-30B-A3B": ("compare/qwen3-30b-a3b", 2),
}
"""Spec of a model, and GPUs of a replica: the smallest power of two that holds it with its answers."""


@dataclass(frozen=True)
class PublishedRun:
    """A row of the CSV."""

    row: dict[str, str]

    def number(self, name: str) -> float | None:
        """A figure, if the row has it."""
        return float(self.row[name]) if self.row[name] else None

    @property
    def is_synchronous(self) -> bool:
        """True if generation and training take turns on the same GPUs."""
        return self.row["mode"].startswith(("colocate_sync", "on_policy"))

    @property
    def workload(self) -> tuple[str, str, str]:
        """Key of runs with the same factors: a model of a document, with the same longest answers."""
        return self.row["source"], self.row["model"], self.row["max_len"]

    @property
    def seconds(self) -> float:
        """Measured seconds of a step."""
        return float(self.row["step_s"])

    def setup(self, mean: float | None) -> RlSetup:
        """The same as it is simulated, with planned seconds; `mean` is for rows that publish no mean length."""
        row, total = self.row, int(self.row["gpus_total"])
        spec, per_replica = SPECS[row["model"]]
        graph = compiled(spec, ())
        longest = int(row["max_len"])
        lengths = AnswerLengths(self.number("mean_len") or mean or longest / 2, longest, SPREAD)
        answers = int(self.number("rollouts_per_step") or ANSWERS)
        generating = total if self.is_synchronous else int(self.number("gpus_rollout") or total // 2)
        learning = total if self.is_synchronous else int(self.number("gpus_train") or total // 2)
        context = PROMPT + round(lengths.mean_tokens_before)
        decode = planned_decode(graph, f"{per_replica}x{row['hardware']}", context, PROMPT + longest)
        peak = parse_cluster(f"1x{row['hardware']}").hardware.peak("bf16").value
        trained = 3 * model_flops(graph, Work(1, PROMPT + round(lengths.mean), phase="train")) * answers
        passes = 1.0 if "async" in row["mode"] else PASSES
        return RlSetup(
            answers=answers,
            lengths=lengths,
            replicas=max(1, generating // per_replica),
            slots=decode.slots,
            decode=decode.times,
            train_seconds=passes * trained / (learning * peak),
            staleness=float(row["staleness"]),
            chunks=self.chunks,
            is_colocated=self.is_synchronous,
        )

    @property
    def chunks(self) -> int:
        """Parts in which the learner takes a batch."""
        parts = re.search(r"reqbatch(\d+)", self.row["mode"])
        if parts:
            return 16 // int(parts[1])
        return 4 if "async_partial" in self.row["mode"] or "stream" in self.row["mode"] else 1


@dataclass(frozen=True)
class Judged:
    """A run, and its simulated seconds."""

    run: PublishedRun
    seconds: float

    @property
    def error(self) -> float:
        """Relative to the measured seconds."""
        return self.seconds / self.run.seconds - 1


def read_runs(path: Path) -> list[PublishedRun]:
    """All rows."""
    with path.open(encoding="utf-8", newline="") as file:
        return [PublishedRun(row) for row in csv.DictReader(file)]


def judge(runs: Iterable[PublishedRun]) -> tuple[dict[tuple[str, str, str], RlFactors], list[Judged]]:
    """Factors of each workload that has synchronous rows, and its other rows with what they are simulated to take."""
    workloads: dict[tuple[str, str, str], list[PublishedRun]] = defaultdict(list)
    for run in runs:
        if run.row["model"] in SPECS:
            workloads[run.workload].append(run)
    factors, judged = {}, []
    for key, rows in workloads.items():
        measured = [run for run in rows if run.is_synchronous]
        if not measured:
            continue
        mean = mean_length(measured)
        synchronous = [_measured(run, mean) for run in measured]
        factors[key] = fit_factors(synchronous)
        for run in rows:
            if not run.is_synchronous:
                times = simulate_rl(factors[key].applied(run.setup(mean)))
                judged.append(Judged(run, times.step_seconds))
    return factors, judged


def mean_length(runs: Sequence[PublishedRun]) -> float | None:
    """Tokens of an answer, from what its update takes; None where rows publish them or give no update."""
    if any(run.number("mean_len") or not run.number("update_s") for run in runs):
        return None
    graph = compiled(SPECS[runs[0].row["model"]][0], ())
    per_token = 3 * model_flops(graph, Work(1, PROMPT, phase="train")) / PROMPT
    tokens = []
    for run in runs:
        peak = parse_cluster(f"1x{run.row['hardware']}").hardware.peak("bf16").value
        flops = (run.number("update_s") or 0.0) * int(run.row["gpus_total"]) * peak * UTILIZATION
        tokens.append(flops / per_token / (run.number("rollouts_per_step") or ANSWERS))
    return max(1.0, geometric_mean(tokens) - PROMPT)


def _measured(run: PublishedRun, mean: float | None) -> SynchronousStep:
    """With the learner's seconds by its update, which asynchronous rows have too."""
    update = run.number("update_s")
    training = None if update is None else update * PASSES
    return SynchronousStep(run.setup(mean), run.seconds, run.number("gen_s"), training)


def main(arguments: Sequence[str]) -> None:
    """Print factors, rows and the median error."""
    factors, judged = judge(read_runs(Path(arguments[0])))
    for (source, model, longest), fitted in factors.items():
        by_part = f"generation x {fitted.generation:.2f}, training x {fitted.training:.2f}"
        print(f"{model}, {longest} tokens, {source}: {by_part}")
    print("\n| row | run | staleness | measured s | simulated s | error |\n|---|---|---|---|---|---|")
    for one in judged:
        row = one.run.row
        name = f"{row['model']}, {row['gpus_total']} {row['hardware']}, {row['mode'].replace('_', ' ')}"
        measured = f"{one.run.seconds:.0f} | {one.seconds:.0f} | {one.error:+.1%}"
        print(f"| {row['id']} | {name} | {row['staleness']} | {measured} |")
    print(f"\nmedian of absolute errors: {median(abs(one.error) for one in judged):.1%} of {len(judged)} rows")


if __name__ == "__main__":
    main(sys.argv[1:])
