"""Learning-rate transfer: a recipe's first phase trained at several sizes and rates, and coordinate checks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import torch
from torch import Tensor, nn

from l4spec.errors import UserError
from l4spec.spec.recipe import Phase
from l4spec.training.loop import LoopSettings, StepMetrics, train_steps
from l4spec.training.optimizer import make_optimizer
from l4spec.training.recipe.metrics import Recent
from l4spec.training.recipe.phases import prepare
from l4spec.training.recipe.worker import RecipeRun
from l4spec.training.transfer_job import GrowthAxis, Sweep, TransferJob

DIVERGED = 1e9
"""Stands for the loss of a run that is not finite."""


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
    except UserError:
        return DIVERGED
    return recent.loss


def _run(job: TransferJob) -> RecipeRun:
    if job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
    return RecipeRun(job, lambda line: None)


def _steps(run: RecipeRun, phase: Phase, num_steps: int) -> Iterator[StepMetrics]:
    optimizer = make_optimizer(run.model, phase.optimizer, run.factors, run.growth(phase).rate)
    prepared = prepare(run.context(phase))
    settings = LoopSettings(num_steps, phase.schedule, phase.optimizer.clip)
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
    seed.
    """

    times: int
    best_rate: float
    moved: int
    tuned: float
    excess: float
    error: float | None

    @property
    def is_close(self) -> bool:
        """Within the larger of 0.5 % and two standard errors."""
        return self.excess <= max(0.005 * self.tuned, 2 * (self.error or 0.0))


def transferred(points: Sequence[TransferPoint]) -> tuple[Transferred, ...]:
    """For each growth of one axis; the first one transfers to itself."""
    best = best_rates(points)
    rates = sorted({point.rate for point in points})
    first = best[points[0].times]
    losses = {(point.times, point.rate, point.seed): point.loss for point in points}
    seeds = list(dict.fromkeys(point.seed for point in points))
    rows = []
    for times, rate in best.items():
        excess = [losses[times, first, seed] - losses[times, rate, seed] for seed in seeds]
        rows.append(
            Transferred(
                times=times,
                best_rate=rate,
                moved=rates.index(rate) - rates.index(first),
                tuned=fmean(losses[times, rate, seed] for seed in seeds),
                excess=fmean(excess),
                error=stdev(excess) / len(seeds) ** 0.5 if len(seeds) > 1 else None,
            )
        )
    return tuple(rows)


def features(job: TransferJob, num_steps: int) -> dict[str, float]:
    """The coordinate check: mean |output| of every block's layers and of the head after some steps, by node id."""
    run = _run(job)
    (phase,) = job.phases
    for _ in _steps(run, phase, num_steps):
        pass
    batch, _ = run.mixture.held_out(phase.batch, phase.context, run.context(phase).weights)
    sizes: dict[str, float] = {}

    for node in run.model.nodes:
        if node.role in ("attention", "ffn", "head", "final_norm"):
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
