"""Random weights that depend on a tensor's name and the seed alone, not on layout, order, device or dtype."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Parameter
from l4spec.runtime.progress import Report

STANDARD_DEVIATION = 0.02
_BLOCK = 2**18
"""Numbers drawn at once, each block from a seed of its own: few enough for a core's cache, and many for its threads.
Changing it changes every random model."""


@torch.no_grad()
def initialize(model: nn.Module, graph: LayerGraph, seed: int = 0, *, report: Report | None = None) -> None:
    """Fill every tensor of the model: norms with ones, biases with zeros, the rest from a normal of deviation 0.02.

    A norm that multiplies by 1 + weight starts at zeros. The same seed gives a tensor of the same name the same values
    in every model, up to rounding to its dtype, however many threads draw them.
    """
    tensors = model.state_dict(keep_vars=True)
    total, done = sum(tensor.numel() for tensor in tensors.values()), 0
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for node, parameter in graph.parameters():
            if parameter.tied_to is None:
                name = f"{node.id}.{parameter.name}"
                _fill(tensors[name], node, parameter, f"{seed} {name}", threads)
                done += tensors[name].numel()
                if report:
                    report(done, total)


def _fill(tensor: Tensor, node: LayerNode, parameter: Parameter, key: str, threads: ThreadPoolExecutor) -> None:
    if parameter.role == "norm":
        tensor.fill_(0.0 if getattr(node.spec, "unit_offset", False) else 1.0)
    elif parameter.role == "bias":
        tensor.zero_()
    else:
        _fill_normal(tensor, int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest()), threads)


def _fill_normal(tensor: Tensor, seed: int, threads: ThreadPoolExecutor) -> None:
    blocks = torch.split(tensor.detach().view(-1), _BLOCK)

    def draw(index: int) -> None:
        generator = torch.Generator(device="cpu").manual_seed(seed + index)
        values = torch.empty(blocks[index].shape, dtype=torch.float32, device="cpu")
        blocks[index].copy_(values.normal_(std=STANDARD_DEVIATION, generator=generator))

    if len(blocks) == 1:
        draw(0)
    else:
        list(threads.map(draw, range(len(blocks))))
