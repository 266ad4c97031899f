"""Shards of this rank: its region of every tensor of a training run, and the memory that holds it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from l4spec.runtime.parallel.training import local_of
from l4spec.sharding.rules import Region
from l4spec.units import ceil_div

if TYPE_CHECKING:
    from l4spec.runtime.model import Model

MODEL = "model."
OPTIMIZER = "optimizer."
"""Prefix of optimizer state in a sharded checkpoint: `model.NAME`, and `optimizer.NAME.exp_avg` for AdamW's moments."""


@dataclass(frozen=True, slots=True)
class LocalShard:
    """A region of a whole tensor of `shape`; `tensor` is that region, on this rank."""

    name: str
    shape: tuple[int, ...]
    region: Region
    tensor: Tensor


def shards_of_model(model: "Model") -> dict[str, LocalShard]:
    """Every tensor of a model, whole or one rank's, by its name."""
    shapes = whole_shapes(model)
    shards = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        local = local_of(tensor).detach()
        region = _region(model, name, shapes[name])
        assert tuple(local.shape) == tuple(map(len, region)), f"{name}: shape {tuple(local.shape)}, layout {region}"
        shards[name] = LocalShard(name, shapes[name], region, local)
    return shards


def whole_shapes(model: "Model") -> dict[str, tuple[int, ...]]:
    """Shapes of the whole model's tensors, those of other ranks too."""
    return {f"{node.id}.{p.name}": p.shape for node, p in model.graph.parameters() if p.tied_to is None}


def shards_of_optimizer(
    optimizer: torch.optim.Optimizer, model: "Model", model_shards: Mapping[str, LocalShard]
) -> dict[str, LocalShard]:
    """Every tensor of an optimizer's state: those shaped like their parameter by its region, numbers whole."""
    shards = {}
    for name, parameter in trained(optimizer, model):
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            if not isinstance(value, Tensor):
                raise TypeError(f"{key} of {name}: only tensors can be saved of an optimizer, found {type(value)}")
            full, local = f"{name}.{key}", local_of(value).detach()
            if local.dim() == 0:
                shards[full] = LocalShard(full, (), (), local)
            else:
                shards[full] = LocalShard(full, model_shards[name].shape, model_shards[name].region, local)
    return shards


def trained(optimizer: torch.optim.Optimizer, model: "Model") -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(name, parameter) of every tensor that an optimizer trains."""
    of_optimizer = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) in of_optimizer)


def _region(model: "Model", name: str, shape: tuple[int, ...]) -> Region:
    from l4spec.runtime.parallel.model import RankModel

    if isinstance(model, RankModel):
        return model.local_region(name)
    return tuple(map(range, shape))


def chunks_of(region: Region, itemsize: int, limit: int) -> Iterator[Region]:
    """A region in pieces of at most `limit` bytes (or single elements), cut along its first dims; none when empty."""
    if not all(map(len, region)):
        return
    size = itemsize * prod(map(len, region))
    dim = next((index for index, run in enumerate(region) if len(run) > 1), None)
    if size <= limit or dim is None:
        yield region
        return
    run = region[dim]
    parts = min(len(run), ceil_div(size, limit))
    width = ceil_div(len(run), parts)
    for start in range(run.start, run.stop, width):
        piece = range(start, min(start + width, run.stop))
        yield from chunks_of((*region[:dim], piece, *region[dim + 1 :]), itemsize, limit)
