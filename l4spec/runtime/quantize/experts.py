"""Routed experts whose stacks are packed: each expert's matrices in place, only chosen ones are read."""

import torch
from torch import Tensor, nn

from l4spec.layers.common.grouped_linear import hit
from l4spec.layers.common.modules import add_bias, expert_linear
from l4spec.layers.moe.module import Experts
from l4spec.runtime.quantize.weight import PackedWeight


class QuantizedExperts(nn.Module):
    """`Experts` of which some or all of the three stacks [experts, out, in] are packed."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.is_gated, self.gated = experts.is_gated, experts.gated
        for name, stack in experts.named_parameters():
            self.register_parameter(name, nn.Parameter(stack.detach(), requires_grad=False))

    def set(self, name: str, weight: PackedWeight) -> None:
        """Hold this stack packed."""
        delattr(self, name)
        self.add_module(name, weight)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Rows [rows, hidden] sorted by expert, expert e's ending at offsets[e], to [rows, hidden]."""
        return torch.cat([self.single(x[start:stop], expert) for expert, start, stop in hit(offsets)])

    def single(self, x: Tensor, expert: int) -> Tensor:
        """One expert on all rows."""
        if not self.is_gated:
            return self._project("down", self.gated.activated(self._project("up", x, expert)), expert)
        gate = self.gated.activated(self._project("gate", x, expert))
        return self._project("down", self.gated.times(gate, self._project("up", x, expert)), expert)

    def _project(self, name: str, x: Tensor, expert: int) -> Tensor:
        weight = getattr(self, f"{name}_proj")
        biases: Tensor | None = getattr(self, f"{name}_bias", None)
        bias = None if biases is None else biases[expert]
        if isinstance(weight, PackedWeight):
            return weight.linear(x, expert, bias)
        return add_bias(expert_linear(x, weight[expert]), bias)
