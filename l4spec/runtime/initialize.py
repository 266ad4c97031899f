"""Random weights that depend on a tensor's name and the seed alone, not on layout, order, device or dtype."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod

import torch
from torch import Tensor, nn

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Parameter
from l4spec.progress import Progress
from l4spec.sharding.rules import Region
from l4spec.units import ceil_div

STANDARD_DEVIATION = 0.02
_BLOCK = 2**18
"""Numbers drawn at once, each block from a seed of its own: few enough for a core's cache, and many for its threads.
Changing it changes every random model."""


_START = {"norm": 1.0, "bias": 0.0}
"""Initial value by role, for tensors whose declaration names none."""


def initialize(model: nn.Module, graph: LayerGraph, seed: int = 0, *, progress: Progress | None = None) -> None:
    """Fill every tensor of the model: norms with ones, biases with zeros, the rest from a normal of deviation 0.02.

    Tensors of indices are filled with them in order. A norm that multiplies by 1 + weight starts at zeros. The same
    seed gives a tensor of the same name the same values in every model, up to rounding to its dtype, however many
    threads draw them.
    """
    regions = ((node, p, tuple(map(range, p.shape))) for node, p in graph.parameters() if p.tied_to is None)
    fill(model.state_dict(keep_vars=True), regions, seed, progress=progress)


@torch.no_grad()
def fill(
    tensors: Mapping[str, Tensor],
    regions: Iterable[tuple[LayerNode, Parameter, Region]],
    seed: int,
    *,
    progress: Progress | None = None,
) -> None:
    """Fill tensors that are regions of declared ones with the values of the whole ones."""
    total, done = sum(tensor.numel() for tensor in tensors.values()), 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for node, parameter, region in regions:
            name = f"{node.id}.{parameter.name}"
            _fill(tensors[name], parameter, region, f"{seed} {name}", threads)
            done += tensors[name].numel()
            if progress:
                progress(done, total)


@torch.no_grad()
def initialize_layer(layer: nn.Module, node: LayerNode, seed: int = 0) -> None:
    """Initialize one layer of a model as `initialize` does."""
    tensors = {f"{node.id}.{name}": tensor for name, tensor in layer.state_dict(keep_vars=True).items()}
    own = (parameter for parameter in node.declaration.parameters if parameter.tied_to is None)
    fill(tensors, ((node, parameter, tuple(map(range, parameter.shape))) for parameter in own), seed)


def _fill(tensor: Tensor, parameter: Parameter, region: Region, key: str, threads: ThreadPoolExecutor) -> None:
    start = parameter.start if parameter.start is not None else _START.get(parameter.role)
    if parameter.index is not None:
        places = torch.arange(prod(parameter.shape), device=tensor.device).view(parameter.shape)
        tensor.copy_(places[tuple(slice(run.start, run.stop) for run in region)] % parameter.index)
    elif start is not None:
        tensor.fill_(start)
    elif tensor.numel():
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest())
        _fill_normal(tensor.detach(), parameter.shape, region, seed, threads)


def _fill_normal(
    tensor: Tensor, shape: tuple[int, ...], region: Region, seed: int, threads: ThreadPoolExecutor
) -> None:
    row = prod(shape[1:])
    start, stop = region[0].start * row, region[0].stop * row  # among the numbers of the whole tensor
    is_run = tuple(map(len, region[1:])) == shape[1:]

    def draw(index: int) -> None:
        first = index * _BLOCK
        generator = torch.Generator(device="cpu").manual_seed(seed + index)
        values = torch.empty(min(_BLOCK, prod(shape) - first), dtype=torch.float32, device="cpu")
        values.normal_(std=STANDARD_DEVIATION, generator=generator)
        low, high = max(first, start), min(first + len(values), stop)
        values = values[low - first : high - first]
        if is_run:
            tensor.view(-1)[low - start : high - start].copy_(values)
        else:
            _scatter(tensor, values, low, shape, region)

    blocks = range(start // _BLOCK, ceil_div(stop, _BLOCK))
    if len(blocks) == 1:
        draw(blocks[0])
    else:
        list(threads.map(draw, blocks))


def _scatter(tensor: Tensor, values: Tensor, first: int, shape: tuple[int, ...], region: Region) -> None:
    """Copy those of `values`, elements from `first` on of the whole tensor, that are in the region."""
    places = torch.unravel_index(torch.arange(first, first + len(values)), shape)
    is_held = torch.ones(len(values), dtype=torch.bool)
    for place, indices in zip(places, region, strict=True):
        is_held &= (place >= indices.start) & (place < indices.stop)
    local = tuple(
        (place[is_held] - indices.start).to(tensor.device) for place, indices in zip(places, region, strict=True)
    )
    tensor.index_put_(local, values[is_held].to(tensor.device, tensor.dtype))
