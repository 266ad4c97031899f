"""A training step, ours beside transformers' with the same weights: forward, loss, backward and AdamW."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed_timing import Timed
from l4spec.runtime.model import Model

AGREEMENT = 1e-3
"""Largest relative difference of losses and of gradients' norms at which a comparison is fair."""
PASSES = 3
"""FLOPs of a step over those of its forward pass: gradients of inputs and of weights take as many each."""


def training_steps(model: Model, other: Any, ids: Tensor) -> dict[str, Timed]:
    """A step of each on tokens [rows, tokens], by the names of a result's pair.

    The learning rate is 0, so that AdamW does all its work and every round sees the same weights and routes. Exits
    where losses or gradients differ, so that no comparison would be fair.
    """
    readers: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]] = {
        "train": (model, model),
        "transformers": (other, lambda tokens: other(tokens, use_cache=False).logits),
    }
    steps = {name: _step(module, read, ids) for name, (module, read) in readers.items()}
    losses = {name: step() for name, step in steps.items()}
    norms = {name: _gradient_norm(module) for name, (module, _) in readers.items()}
    for what, values in (("losses", losses), ("gradients' norms", norms)):
        mine, theirs = values["train"], values["transformers"]
        if abs(mine - theirs) > AGREEMENT * theirs:
            raise SystemExit(f"{what} are {mine:.6g} and {theirs:.6g}, so that no comparison is fair")
    return {name: Timed(step, is_slow=name == "transformers") for name, step in steps.items()}


def _step(module: nn.Module, read: Callable[[Tensor], Tensor], ids: Tensor) -> Callable[[], float]:
    module.train().requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0)

    def run() -> float:
        with torch.enable_grad():
            optimizer.zero_grad()
            logits = read(ids)[:, :-1].flatten(0, 1).float()
            loss = nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
            torch.autograd.backward(loss)
            optimizer.step()
            return float(loss.detach())

    return run


def _gradient_norm(module: nn.Module) -> float:
    return float(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))


def without_gradients(*modules: nn.Module) -> None:
    """Leave them as they were before `training_steps`."""
    for module in modules:
        module.eval().requires_grad_(requires_grad=False)
        for parameter in module.parameters():
            parameter.grad = None
