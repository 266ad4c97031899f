"""Errors of predictions of our module's time on random models and workloads, none of them used to calibrate.

    l4spec calibrate
    python -m benchmarks.predict_time --seed 7 --count 40 --csv docs/calibrate.csv --plot docs/calibrate.svg

Each model is predicted by the profile of `l4spec calibrate`, then run: a prefill into a cache, one unmeasured and three
of which the median counts, and decode steps likewise. Before and after, a product and a read of weights are timed;
where either takes much longer or shorter than the profile says, the machine is not as it was calibrated (others compute
beside us, or no longer do), and the model is measured again later. Models that were never measured on an undisturbed
machine are named, and left out. `--lock FILE` is kept locked while measuring.
"""

import argparse
import csv
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import l4spec
from benchmarks.predict_models import DECODE_STEPS, Trial, trials
from l4spec.layers.common.modules import linear
from l4spec.runtime.calibrate.timing import CLOCKS, Clock
from l4spec.runtime.model import Model
from planners.catalog import hardware
from planners.catalog.cpu_profile import EagerTimes
from planners.counts.params import count_params
from planners.evidence.spread import percentile
from planners.module.step_time import EagerModel
from planners.module.time_table import seconds_at

NUM_PREFILLS = 3
AS_CALIBRATED = 1.15
"""By which factor a reference may take longer or shorter than calibrated."""
MOST_TRIES = 8
HOLD_SECONDS = 75.0
MOST_BYTES = 4 << 30
"""Weights that are built at a time."""
COLUMNS = ("model", "batch", "prompt", "phase", "predicted_ms", "measured_ms", "error", "reference", "what")


@dataclass(slots=True)
class Judged:
    """A model with its predictions and, once there was a quiet moment, what was measured, all in seconds."""

    trial: Trial
    prefill: float
    decode: float
    measured: tuple[float, float] | None = None
    reference: float = 0.0
    tries: int = 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its lines of the table."""
        assert self.measured is not None
        for phase, predicted, measured in zip(
            ("prefill", "decode"), (self.prefill, self.decode), self.measured, strict=True
        ):
            yield {
                "model": self.trial.number,
                "batch": self.trial.batch,
                "prompt": self.trial.prompt,
                "phase": phase,
                "predicted_ms": f"{1000 * predicted:.3f}",
                "measured_ms": f"{1000 * measured:.3f}",
                "error": f"{predicted / measured - 1:+.4f}",
                "reference": f"{self.reference:.3f}",
                "what": self.trial.what,
            }


@dataclass(frozen=True, slots=True)
class Runner:
    """Times models and, to know a quiet moment, a product and a read of weights against what the profile says."""

    times: EagerTimes
    dtype: str
    clock: Clock
    square: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, times: EagerTimes, dtype: str, clock: Clock) -> "Runner":
        """In the number format that is judged."""
        dtype_of_run = torch.float32 if dtype == "fp32" else torch.bfloat16
        return cls(
            times, dtype, clock, torch.randn(1024, 1024).to(dtype_of_run), torch.randn(16384, 1024).to(dtype_of_run)
        )

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one call."""
        now = CLOCKS[self.clock]
        start = now()
        run()
        return now() - start

    def drift(self) -> float:
        """Time of a reference relative to its calibration; of both references, the ratio farther from 1."""
        product = median(self.seconds(lambda: linear(self.square, self.square)) for _ in range(5))
        read = median(self.seconds(lambda: linear(self.square[:1], self.weights)) for _ in range(5))
        table = self.times.pieces[self.dtype].product
        expected = seconds_at(table, (1024, 1024, 1024)), seconds_at(table, (1, 1024, 16384), cold=1.0)
        return _farther(product / expected[0], read / expected[1])

    def measure(self, trial: Trial, model: Model) -> tuple[float, float]:
        """Median seconds of prefills into a cache after one to warm up, and of decode steps after the first."""
        vocab_size = trial.graph.model.text.embedding.vocab_size
        ids = torch.randint(vocab_size, (trial.batch, trial.prompt), generator=torch.Generator().manual_seed(0))
        cache = model.new_cache(trial.batch, trial.prompt + DECODE_STEPS)
        prefills = []
        for _ in range(NUM_PREFILLS + 1):
            cache.reset()
            prefills.append(self.seconds(lambda: model(ids, cache=cache, logits="last")))
        steps = [self.seconds(lambda: model(ids[:, -1:], cache=cache, logits="last")) for _ in range(DECODE_STEPS)]
        return median(prefills[1:]), median(steps[1:])


def judge(judged: Sequence[Judged], runner: Runner, lock: Path | None) -> None:
    """Measure every model at a quiet moment; what has none within the tries stays unmeasured."""
    while waiting := [each for each in judged if each.measured is None and each.tries < MOST_TRIES]:
        models = _build(sorted(waiting, key=lambda each: each.tries), runner.dtype)
        with _holding(lock), torch.no_grad():
            end = time.perf_counter() + HOLD_SECONDS
            for each, model in models:
                if time.perf_counter() < end:
                    _measure(each, model, runner)
        models.clear()
        gc.collect()


def _build(waiting: Sequence[Judged], dtype: str) -> list[tuple[Judged, Model]]:
    built: list[tuple[Judged, Model]] = []
    num_bytes = 0
    for each in waiting:
        num_bytes += 4 * count_params(each.trial.graph).total
        if built and num_bytes > MOST_BYTES:
            break
        built.append((each, l4spec.build(each.trial.graph, "cpu", dtype)))
    return built


def _measure(each: Judged, model: Model, runner: Runner) -> None:
    each.tries += 1
    before = runner.drift()
    if not _is_as_calibrated(before):
        return
    measured = runner.measure(each.trial, model)
    each.reference = _farther(before, runner.drift())
    if _is_as_calibrated(each.reference):
        each.measured = measured
        for row in each.rows():
            print(*row.values(), sep="  ", flush=True)


def _farther(*ratios: float) -> float:
    return max(ratios, key=lambda ratio: abs(math.log(ratio)))


def _is_as_calibrated(ratio: float) -> bool:
    return 1 / AS_CALIBRATED <= ratio <= AS_CALIBRATED


@contextmanager
def _holding(lock: Path | None) -> Iterator[None]:
    if lock is None:
        yield
        return
    import fcntl

    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def summary(judged: Sequence[Judged]) -> dict[str, tuple[float, float, int]]:
    """Median and 90th percentile of absolute relative errors, and how many, of each phase and of all."""
    errors: dict[str, list[float]] = {"prefill": [], "decode": []}
    for each in judged:
        if each.measured is not None:
            for row in each.rows():
                errors[row["phase"]].append(abs(float(row["error"])))
    errors["both"] = errors["prefill"] + errors["decode"]
    return {phase: (median(values), percentile(values, 90), len(values)) for phase, values in errors.items() if values}


def write_csv(path: Path, judged: Sequence[Judged], head: str) -> None:
    """Every point, under a line that says how it was measured."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# {head}\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for each in judged:
            if each.measured is not None:
                writer.writerows(each.rows())


def main() -> None:
    """Predict, measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--profile", default="this")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for one thread of a busy machine"
    )
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path, help="draw the CSV file's points")
    parser.add_argument("--lock", type=Path)
    given = parser.parse_args()
    times = hardware(given.profile).eager
    if times is None:
        raise SystemExit(f"{given.profile} has no times of our module: run l4spec calibrate")
    torch.set_num_threads(times.threads)
    judged = [_predicted(trial, times, given.dtype) for trial in trials(given.seed, given.count)]
    judge(judged, Runner.of(times, given.dtype, given.clock), given.lock)
    head = (
        f"{time.strftime('%Y-%m-%d')}, {times.processor}, {times.threads} threads, torch {torch.__version__}, "
        f"{given.dtype}, {given.clock} clock, calibrated {times.measured} in {times.turns} turns, seed {given.seed}"
    )
    print(head)
    for phase, (middle, most, number) in summary(judged).items():
        print(f"{phase}: median {100 * middle:.1f} %, 90th percentile {100 * most:.1f} % of {number}")
    print("no quiet moment for:", [each.trial.number for each in judged if each.measured is None] or "none")
    if given.csv is not None:
        write_csv(given.csv, judged, head)
    if given.plot is not None:
        from benchmarks.predict_plot import draw

        draw(given.csv, given.plot)


def _predicted(trial: Trial, times: EagerTimes, dtype: str) -> Judged:
    model = EagerModel(trial.graph, times, dtype)
    return Judged(trial, model.seconds(trial.prefill), model.seconds(trial.decode(DECODE_STEPS // 2)))


if __name__ == "__main__":
    main()
