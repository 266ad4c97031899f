"""Optimizers, learning rates over a phase, and the norm of all gradients, whatever ranks hold them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.training import local_of
from l4spec.spec.recipe.phase import OptimizerSpec, ScheduleSpec
from l4spec.training.parametrization import TensorFactors

_PIECE = 1 << 18
"""Elements of a gradient that are squared at a time on a CPU: 2 MiB in fp64."""


def make_optimizer(
    model: nn.Module,
    spec: OptimizerSpec,
    factors: Mapping[str, TensorFactors] | None = None,
    run_rate: float = 1.0,
) -> torch.optim.Optimizer:
    """The optimizer of a phase over this rank's tensors, a group for each mesh that data-parallel ranks share them on.

    AdamW is torch's fused kernel, which reads and writes every tensor once: on a CPU ten times as fast as operation by
    operation, which differs by rounding (docs/speed.md). Matrices decay, vectors (norms, biases) do not. `factors` are
    those of a parametrization by the tensors' names, `run_rate` is a factor on every rate.
    """
    members: dict[tuple[bool, TensorFactors, DeviceMesh | None], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = TensorFactors() if factors is None else factors.get(name, TensorFactors())
            mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
            members[parameter.dim() > 1, own, mesh].append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": spec.learning_rate * own.rate * run_rate,
            "weight_decay": spec.weight_decay * own.decay if is_matrix else 0.0,
            **({"eps": spec.eps * own.eps} if spec.kind == "adamw" else {}),
        }
        for (is_matrix, own, _), parameters in members.items()
    ]
    if spec.kind == "sgd":
        return torch.optim.SGD(groups, lr=spec.learning_rate, foreach=False)
    return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps, fused=True)


def rate_at(schedule: ScheduleSpec, step: int, num_steps: int) -> float:
    """The share of the peak learning rate in step `step` of `num_steps`, counted from 0.

    It rises linearly over the warm-up to 1, reaches `final` in the last step, and never is 0 in between.
    """
    warmup = round(schedule.warmup * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant" or num_steps - warmup <= 1:
        return 1.0
    share = (step - warmup) / (num_steps - warmup - 1)
    fallen = share if schedule.kind == "linear" else (1 - math.cos(math.pi * share)) / 2
    return 1 - (1 - schedule.final) * fallen


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Set the learning rate of every group to `share` of its own peak; returns that of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = share * group.setdefault("peak", group["lr"])
    return float(optimizer.param_groups[0]["lr"])


class GradientNorm:
    """The norm of all gradients of a model, each tensor counted once however many ranks hold it."""

    def __init__(self, model: RankModel) -> None:
        self.model = model
        self.copies = _copies(model)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """The 2-norm over all ranks, a scalar on the model's device; all ranks must call it."""
        total = torch.zeros((), dtype=torch.float64, device=self.model.device)
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                total += sum_of_squares(local_of(parameter.grad)) / self.copies[name]
        return _summed(total).sqrt()


def sum_of_squares(x: Tensor) -> Tensor:
    """The sum of squares in fp64; on a CPU piece by piece, since fp64 of a whole gradient would be new memory."""
    pieces = torch.split(x.flatten(), _PIECE) if x.is_cpu else (x,)
    return torch.stack([piece.double().square().sum() for piece in pieces]).sum()


def _copies(model: RankModel) -> dict[str, float]:
    """By name of a parameter, how many ranks hold each of its elements on average."""
    declared = {f"{node.id}.{p.name}": p for node, p in model.graph.parameters()}
    own_sizes = {name: local_of(parameter).numel() for name, parameter in model.named_parameters()}
    counts = torch.tensor([own_sizes.get(name, 0) for name in declared], dtype=torch.float64, device=model.device)
    wholes = [max(p.num_stored, 1) for p in declared.values()]
    everywhere = _summed(counts).tolist()
    return {name: max(count / whole, 1.0) for name, count, whole in zip(declared, everywhere, wholes, strict=True)}


def _summed(x: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], norm: Tensor, most: float) -> None:
    """Scale all gradients by most / norm where that is below 1 (Pascanu et al., arXiv:1211.5063)."""
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    if scale == 1.0:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            local_of(parameter.grad).mul_(scale.to(parameter.dtype))
