"""Which experts the tokens of a run choose."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from l4spec.layers.moe.module import MoE

Load = dict[str, list[int]]
"""By node id, how many tokens chose each expert."""


@contextmanager
def watching_experts(model: nn.Module) -> Iterator[Load]:
    """How often each expert of each mixture is chosen while the model runs in the block."""
    load: Load = {}
    handles = []
    for layer in model.modules():
        if isinstance(layer, MoE):
            load[layer.node_id] = [0] * layer.spec.num_experts
            handles.append(layer.router.register_forward_hook(_adder(load[layer.node_id])))
    try:
        yield load
    finally:
        for handle in handles:
            handle.remove()


def _adder(counts: list[int]) -> "_Hook":
    return _Hook(counts)


class _Hook:
    """Adds the choices of one forward pass, [tokens, top-k], to the counts of a layer."""

    def __init__(self, counts: list[int]) -> None:
        self.counts = counts

    def __call__(self, router: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        found = torch.bincount(output[1].flatten(), minlength=len(self.counts)).tolist()
        for expert, count in enumerate(found):
            self.counts[expert] += count
