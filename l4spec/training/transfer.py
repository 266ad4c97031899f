"""Learning-rate transfer: a recipe's first phase trained at several sizes and rates, and coordinate checks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import torch
from torch import Tensor, nn

from l4spec.spec.recipe import Phase
from l4spec.training.loop import LoopSettings, StepMetrics, train_steps
from l4spec.training.nonfinite import NotFiniteError
from l4spec.training.optimizer import make_optimizer
from l4spec.training.recipe.metrics import Recent
from l4spec.training.recipe.phases import prepare
from l4spec.training.recipe.worker import RecipeRun
from l4spec.training.transfer_job import GrowthAxis, Sweep, TransferJob

DIVERGED = math.inf
"""The loss of a run that stopped being finite, and of every mean that such a run is part of."""


@dataclass(frozen=True, slots=True)
class TransferPoint:
    """The mean loss of the last steps of one run."""

    axis: GrowthAxis
    times: int
    rate: float
    seed: int
    loss: float


def final_loss(job: TransferJob) -> float:
    """The mean loss of the last 20 steps; `DIVERGED` where it stops being finite."""
    run = _run(job)
    (phase,) = job.phases
    recent = Recent()
    try:
        for done in _steps(run, phase, phase.num_steps):
            recent.add(done)
    except NotFiniteError:
        return DIVERGED
    return recent.loss


def _run(job: TransferJob) -> RecipeRun:
    if job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
    return RecipeRun(job, lambda line: None)


def _steps(run: RecipeRun, phase: Phase, num_steps: int) -> Iterator[StepMetrics]:
    run.freeze(phase)
    optimizer = make_optimizer(run.model, phase.optimizer, run.factors, run.growth(phase).rate)
    prepared = prepare(run.context(phase))
    settings = LoopSettings(num_steps, phase.schedule, phase.optimizer.clip, fp8=phase.fp8)
    return train_steps(
        run.model, optimizer, prepared.batch_of, settings, objective=prepared.objective, mtp=prepared.mtp
    )


@dataclass(frozen=True, slots=True)
class FeatureSize:
    """Mean |output| of one node after a few steps."""

    axis: GrowthAxis
    times: int
    seed: int
    node: str
    size: float


def sweep(job: TransferJob, asked: Sweep, progress: Callable[[TransferPoint], None]) -> list[TransferPoint]:
    """Every run of a sweep, one after the other; `progress` is called with each."""
    points = []
    for times in asked.times:
        for rate in asked.rates:
            for seed in asked.seeds:
                one = replace(job, axis=asked.axis, times=times, rate=rate, seed=seed)
                points.append(TransferPoint(asked.axis, times, rate, seed, final_loss(one)))
                progress(points[-1])
    return points


def best_rates(points: Sequence[TransferPoint]) -> dict[int, float]:
    """By growth, the rate whose mean loss over seeds is least."""
    best: dict[int, float] = {}
    for times in dict.fromkeys(point.times for point in points):
        means = {
            rate: fmean([p.loss for p in points if (p.times, p.rate) == (times, rate)])
            for rate in dict.fromkeys(point.rate for point in points)
        }
        best[times] = min(means, key=lambda rate: means[rate])
    return best


@dataclass(frozen=True, slots=True)
class Transferred:
    """Transfer of the best learning rate at the first growth to another growth.

    `moved` counts steps of the grid from that rate to the best one here. `excess` is the loss at that rate less the
    loss at the best one, in the mean over seeds, and `error` its standard error over pairs of one seed; None for one
    seed. `excess` is infinite where a run at that rate diverged, and NaN where one did at every rate, here or at the
    first growth; `error` is None then.
    """

    times: int
    best_rate: float
    moved: int
    tuned: float
    excess: float
    error: float | None

    @property
    def is_close(self) -> bool:
        """Within the larger of 0.5 % and two standard errors; False where a run diverged."""
        return math.isfinite(self.excess) and self.excess <= max(0.005 * abs(self.tuned), 2 * (self.error or 0.0))


def transferred(points: Sequence[TransferPoint]) -> tuple[Transferred, ...]:
    """For each growth of one axis; the first one transfers to itself."""
    best = best_rates(points)
    rates = sorted({point.rate for point in points})
    first = best[points[0].times]
    losses = {(point.times, point.rate, point.seed): point.loss for point in points}
    seeds = list(dict.fromkeys(point.seed for point in points))
    is_known = all(math.isfinite(losses[points[0].times, first, seed]) for seed in seeds)
    unknown = 0.0 if is_known else math.nan
    rows = []
    for times, rate in best.items():
        excess = [losses[times, first, seed] - losses[times, rate, seed] + unknown for seed in seeds]
        rows.append(
            Transferred(
                times=times,
                best_rate=rate,
                moved=rates.index(rate) - rates.index(first),
                tuned=fmean(losses[times, rate, seed] for seed in seeds),
                excess=fmean(excess),
                error=_standard_error(excess),
            )
        )
    return tuple(rows)


def _standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of several finite values."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 and all(map(math.isfinite, values)) else None


def features(job: TransferJob, num_steps: int) -> dict[str, float]:
    """The coordinate check: mean |output| of every block's layers and of the head after some steps, by node id."""
    run = _run(job)
    (phase,) = job.phases
    for _ in _steps(run, phase, num_steps):
        pass
    batch, _ = run.mixture.held_out(phase.batch, phase.context, run.context(phase).weights)
    sizes: dict[str, float] = {}

    for node in run.model.nodes:
        if node.role in ("attention", "ffn", "head"):
            run.model.get_submodule(node.id).register_forward_hook(_recorder(node.id, sizes))
    with torch.no_grad():
        run.model.eval()(batch.input_ids, **dict(batch.inputs))
    return sizes


def feature_sizes(
    job: TransferJob, axis: GrowthAxis, times: Sequence[int], seeds: Sequence[int], num_steps: int
) -> list[FeatureSize]:
    """The coordinate check at each growth and seed."""
    return [
        FeatureSize(axis, number, seed, node, size)
        for number in times
        for seed in seeds
        for node, size in features(replace(job, axis=axis, times=number, seed=seed), num_steps).items()
    ]


def _recorder(name: str, sizes: dict[str, float]) -> "Callable[[nn.Module, object, Tensor], None]":
    def record(module: nn.Module, args: object, output: Tensor) -> None:
        sizes[name] = float(output.abs().mean())

    return record
