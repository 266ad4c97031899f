"""A training step, ours beside transformers' with the same weights: forward, loss, backward and AdamW."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed_timing import Timed
from l4spec.runtime.model import Model

Reader = Callable[[Tensor], Tensor]
"""Token ids [rows, tokens] to logits [rows, tokens, vocabulary]."""
AGREEMENT = 1e-3
"""Largest relative difference of losses and of gradients' norms at which a comparison is fair."""
PASSES = 3
"""FLOPs of a step over those of its forward pass: gradients of inputs and of weights take as many each."""


def training_steps(model: Model, other: Any, ids: Tensor) -> dict[str, Timed]:
    """A step of each on tokens [rows, tokens], by the names of a result's pair.

    The learning rate is 0, so that AdamW does all its work and every round sees the same weights and routes. Exits
    where losses or gradients differ, so that no comparison would be fair.
    """
    readers: dict[str, tuple[nn.Module, Reader]] = {
        "train": (model, ours_reads(model)),
        "transformers": (other, theirs_reads(other)),
    }
    steps = {name: training_step(module, read, ids) for name, (module, read) in readers.items()}
    check_alike("losses", *(step() for step in steps.values()))
    check_alike("gradients' norms", *(gradient_norm(module) for module, _ in readers.values()))
    return {name: Timed(step, is_slow=name == "transformers") for name, step in steps.items()}


def ours_reads(model: Model) -> Reader:
    """Logits of our model."""
    return model


def theirs_reads(other: Any) -> Reader:
    """Logits of the reference."""
    return lambda tokens: other(tokens, use_cache=False).logits


def check_alike(what: str, mine: float, theirs: float) -> None:
    """Exit where two values differ, so that no comparison would be fair."""
    if abs(mine - theirs) > AGREEMENT * theirs:
        raise SystemExit(f"{what} are {mine:.6g} and {theirs:.6g}, so that no comparison is fair")


def training_step(module: nn.Module, read: Reader, ids: Tensor) -> Callable[[], float]:
    """Forward, loss, backward and AdamW on tokens [rows, tokens]; the step returns its loss.

    AdamW is torch's fused one for both sides: our runs use it, and it is the default of transformers' trainer.
    """
    module.train().requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)

    def run() -> float:
        with torch.enable_grad():
            optimizer.zero_grad()
            logits = read(ids)[:, :-1].flatten(0, 1).float()
            loss = nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
            torch.autograd.backward(loss)
            optimizer.step()
            return float(loss.detach())

    return run


def gradient_norm(module: nn.Module) -> float:
    """The 2-norm of all gradients."""
    return float(nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))


def without_gradients(*modules: nn.Module) -> None:
    """Leave them as they were before `training_steps`."""
    for module in modules:
        module.eval().requires_grad_(requires_grad=False)
        for parameter in module.parameters():
            parameter.grad = None
