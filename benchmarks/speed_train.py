"""A training step, ours beside transformers' with the same weights: forward, loss, backward and AdamW."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed_timing import Timed
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.runtime.parallel.step import train_step
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.phase import OptimizerSpec
from l4spec.training.optimizer import make_optimizer, sum_of_squares

AGREEMENT = 1e-3
"""Largest relative difference of losses and of gradients' norms at which a comparison is fair."""
PASSES = 3
"""FLOPs of a step over those of its forward pass: gradients of inputs and of weights take as many each."""
RATE = 0.0
"""Learning rate: AdamW does all its work, and every round sees the same weights and routes."""

Step = tuple[nn.Module, Callable[[], float]]
"""A module and a training step of it, which returns the loss."""


def training_steps(model: Model, other: Any, ids: Tensor) -> dict[str, Timed]:
    """A step of each on tokens [rows, tokens], by the names of a result's pair.

    Exits where losses or gradients differ, so that no comparison would be fair.
    """
    both = {"train": our_step(model, ids), "transformers": their_step(other, ids)}
    check_alike("losses", *(step() for _, step in both.values()))
    check_alike("gradients' norms", *(gradient_norm(module) for module, _ in both.values()))
    return {name: Timed(step, is_slow=name == "transformers") for name, (_, step) in both.items()}


def our_step(model: Model, ids: Tensor) -> Step:
    """The step of `l4spec train` on one rank, which has a copy of the weights, without norm, clipping and loads."""
    rank = distribute(model, Layout(), train=True)
    optimizer = make_optimizer(rank, OptimizerSpec(learning_rate=RATE))
    labels = nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORED)

    @torch.enable_grad()
    def run() -> float:
        loss = train_step(rank, ids, labels, num_microbatches=1)
        optimizer.step()
        return float(loss)

    return rank, run


def their_step(other: Any, ids: Tensor) -> Step:
    """The reference with its own loss, and torch's fused AdamW, the default of transformers' trainer."""
    other.train().requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(other.parameters(), lr=RATE, fused=True)

    @torch.enable_grad()
    def run() -> float:
        optimizer.zero_grad()
        loss = other(ids, labels=ids, use_cache=False).loss
        torch.autograd.backward(loss)
        optimizer.step()
        return float(loss.detach())

    return other, run


def check_alike(what: str, mine: float, theirs: float) -> None:
    """Exit where two values differ, so that no comparison would be fair."""
    if abs(mine - theirs) > AGREEMENT * theirs:
        raise SystemExit(f"{what} are {mine:.6g} and {theirs:.6g}, so that no comparison is fair")


def gradient_norm(module: nn.Module) -> float:
    """The 2-norm of all gradients."""
    return math.sqrt(sum(float(sum_of_squares(p.grad)) for p in module.parameters() if p.grad is not None))


def without_gradients(*modules: nn.Module) -> None:
    """Leave them as they were before `training_steps`."""
    for module in modules:
        module.eval().requires_grad_(requires_grad=False)
        for parameter in module.parameters():
            parameter.grad = None
