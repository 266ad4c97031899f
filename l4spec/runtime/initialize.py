"""Random weights that depend on a tensor's name and the seed alone, not on layout, order, device or dtype."""

import hashlib
import math

import torch
from torch import Tensor, nn

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Parameter

STANDARD_DEVIATION = 0.02
_BLOCK = 2**22
"""Numbers drawn at once: bounds the fp32 copy of a tensor of another dtype. Changing it changes every random model."""


@torch.no_grad()
def initialize(model: nn.Module, graph: LayerGraph, seed: int = 0) -> None:
    """Fill every tensor of the model: norms with ones, biases with zeros, the rest from a normal of deviation 0.02.

    A norm that multiplies by 1 + weight starts at zeros. The same seed gives a tensor of the same name the same values
    in every model, up to rounding to its dtype.
    """
    tensors = model.state_dict(keep_vars=True)
    for node, parameter in graph.parameters():
        if parameter.tied_to is None:
            name = f"{node.id}.{parameter.name}"
            _fill(tensors[name], node, parameter, f"{seed} {name}")


def _fill(tensor: Tensor, node: LayerNode, parameter: Parameter, key: str) -> None:
    if parameter.role == "norm":
        tensor.fill_(0.0 if getattr(node.spec, "unit_offset", False) else 1.0)
    elif parameter.role == "bias":
        tensor.zero_()
    else:
        _fill_normal(tensor, int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1)


def _fill_normal(tensor: Tensor, seed: int) -> None:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    flat = tensor.view(-1)
    for start in range(0, math.prod(tensor.shape), _BLOCK):
        block = flat[start : start + _BLOCK]
        values = torch.empty(block.shape, dtype=torch.float32, device="cpu")
        block.copy_(values.normal_(std=STANDARD_DEVIATION, generator=generator))
