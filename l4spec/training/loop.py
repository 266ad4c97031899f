"""The one training loop: batch, backward pass, clipping, step, bias update, metrics; by any layout and objective."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from l4spec.layers.common.kept_memory import kept_memory
from l4spec.runtime.parallel.loss import Objective
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.mtp import MTPLoss
from l4spec.runtime.parallel.step import train_step
from l4spec.spec.recipe.phase import ScheduleSpec
from l4spec.spec.recipe.precision import Fp8Spec
from l4spec.training.fp8.watch import Fp8Step, Fp8Watch, in_training
from l4spec.training.nonfinite import NotFiniteError, where_not_finite
from l4spec.training.optimizer import GradientNorm, clip, rate_at, set_rate
from l4spec.training.routing import LayerLoad, RoutingLog, move_biases

PIXELS = "pixel_values"
CONSTANT = ScheduleSpec(kind="constant", warmup=0.0)


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """All sequences of a step, the same on every rank: ids and labels [sequences, tokens], -100 counts not.

    `inputs` [sequences, ...] are those of `RankModel.forward`, `extras` [sequences, ...] those of the objective;
    `pixel_values` [tiles, ...] have the order of their places.
    """

    input_ids: Tensor
    labels: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the batch that are known before the step, for the log."""

    def to(self, device: torch.device) -> "TrainBatch":
        """The same on a device."""
        inputs = {name: given.to(device) for name, given in self.inputs.items()}
        extras = {name: given.to(device) for name, given in self.extras.items()}
        return TrainBatch(self.input_ids.to(device), self.labels.to(device), inputs, extras, self.metrics)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Metrics of one step; the same on every rank except for times. `step` counts from 1."""

    step: int
    loss: float
    learning_rate: float
    tokens: int
    seconds: float
    gradient_norm: float
    routing: Mapping[str, LayerLoad] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)
    fp8: Fp8Step | None = None

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all ranks."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Settings of the training loop. `clip` is the largest norm of all gradients, None for none.

    `microbatches` divide the sequences of a rank; None is one sequence each with pipeline stages, else all at once.
    `fp8` selects the matmuls that run in fp8.
    """

    num_steps: int
    schedule: ScheduleSpec = CONSTANT
    clip: float | None = None
    microbatches: int | None = None
    routing: bool = True
    fp8: Fp8Spec | None = None


@dataclass(frozen=True, slots=True)
class StepGoal:
    """Loss that steps minimize: `objective` (None: cross entropy), plus that of modules of multi-token prediction."""

    objective: Objective | None = None
    mtp: MTPLoss | None = None

    def by_depth(self) -> dict[str, float]:
        """The last step's loss of each module, by its name in metrics."""
        depths = None if self.mtp is None else self.mtp.depths
        losses = [] if depths is None else depths.tolist()
        return {f"mtp_loss_{depth}": loss for depth, loss in enumerate(losses, start=1)}


def train_steps(
    model: RankModel,
    optimizer: torch.optim.Optimizer,
    batch_of: Callable[[int], TrainBatch],
    settings: LoopSettings,
    *,
    start: int = 0,
    objective: Objective | None = None,
    mtp: MTPLoss | None = None,
) -> Iterator[StepMetrics]:
    """Steps from `start` to `settings.num_steps`, one by one; `batch_of(step)` depends on the step alone.

    So a run that continues from step n has the losses of one that never stopped. All ranks must go along. With `mtp`
    the modules' losses train too, and are `mtp_loss_{depth}` of the metrics. Raises NotFiniteError, on all ranks
    and before weights change, where a loss or a gradient is not finite, naming step and layer.
    """
    goal = StepGoal(objective, mtp)
    with in_training(model, settings.fp8) as watch, kept_memory():
        yield from _steps(model, optimizer, batch_of, settings, range(start, settings.num_steps), goal, watch=watch)


def _steps(
    model: RankModel,
    optimizer: torch.optim.Optimizer,
    batch_of: Callable[[int], TrainBatch],
    settings: LoopSettings,
    steps: range,
    goal: StepGoal,
    *,
    watch: Fp8Watch | None,
) -> Iterator[StepMetrics]:
    model.train()
    reshard(model)
    log = RoutingLog(model) if settings.routing else None
    norm = GradientNorm(model)
    for step in steps:
        began = time.perf_counter()
        batch = batch_of(step).to(model.device)
        rate = set_rate(optimizer, rate_at(settings.schedule, step, settings.num_steps))
        loss = float(_backward(model, batch, settings, goal))
        size = norm()
        if not (math.isfinite(loss) and bool(torch.isfinite(size))):
            own = own_part(model, batch)
            where = where_not_finite(model, own.input_ids, own.inputs, loss)
            raise NotFiniteError(f"step {step + 1}: {where}{'' if watch is None else watch.finish().as_text()}")
        if settings.clip is not None:
            clip(model.parameters(), size, settings.clip)
        optimizer.step()
        loads = {} if log is None else log.finish()
        move_biases(model, loads)
        seconds = time.perf_counter() - began
        yield StepMetrics(
            step + 1,
            loss,
            rate,
            batch.input_ids.numel(),
            seconds,
            float(size),
            loads,
            {**batch.metrics, **goal.by_depth()},
            None if watch is None else watch.finish(),
        )


def reshard(model: RankModel) -> None:
    """Shard parameters again among data-parallel ranks: an evaluation leaves those outside the blocks gathered."""
    if isinstance(model, FSDPModule):
        model.reshard()


def own_part(model: RankModel, batch: TrainBatch) -> TrainBatch:
    """This rank's part of a batch that all ranks have."""
    inputs = {name: model.own_rows(given) for name, given in batch.inputs.items() if name != PIXELS}
    if PIXELS in batch.inputs:
        inputs[PIXELS] = own_tiles(model, batch.input_ids, batch.inputs[PIXELS])
    extras = {name: model.own_rows(given) for name, given in batch.extras.items()}
    return TrainBatch(model.own_rows(batch.input_ids), model.own_rows(batch.labels), inputs, extras)


def own_tiles(model: RankModel, input_ids: Tensor, tiles: Tensor) -> Tensor:
    """Of the tiles of a batch that all ranks know, in the order of their places, those of this rank's sequences."""
    data = model.mesh.data
    token = -1 if model.image_token_id is None else model.image_token_id
    places = [int(rows.eq(token).sum()) for rows in input_ids.chunk(data.size)]
    return torch.split(tiles, [number // max(model.num_tokens_per_tile, 1) for number in places])[data.index]


def _backward(model: RankModel, batch: TrainBatch, settings: LoopSettings, goal: StepGoal) -> Tensor:
    """The loss of the batch over all ranks, with its gradients in place; None of them is missing."""
    own = own_part(model, batch)
    inputs: dict[str, Any] = dict(own.inputs)
    microbatches = settings.microbatches
    if microbatches is None and model.mesh.layout.pp == 1:
        microbatches = 1
    loss = train_step(
        model,
        own.input_ids,
        own.labels,
        num_microbatches=microbatches,
        objective=goal.objective,
        extras=own.extras,
        mtp=goal.mtp,
        **inputs,
    )
    for parameter in model.parameters():
        if parameter.grad is None and parameter.requires_grad:  # no tokens came here, on all ranks alike
            parameter.grad = torch.zeros_like(parameter)
    return loss
