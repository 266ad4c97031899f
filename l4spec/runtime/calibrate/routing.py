"""Calibration cases of a mixture of experts besides its matmuls: routing, sorting, and the loop over experts."""

from functools import partial
from itertools import product as grid
from typing import Any

import torch
from torch import Tensor, nn

from l4spec.layers.base import Width
from l4spec.layers.moe.module import Experts, MoE
from l4spec.layers.moe.router import Router
from l4spec.layers.moe.spec import MoESpec
from l4spec.runtime.calibrate.buffers import Buffers
from l4spec.runtime.calibrate.tables import TableCases, Timed
from l4spec.runtime.calibrate.timing import Case

NARROW = 64
"""Width of tokens and experts where only the overhead around their products is measured."""
HIT = (2, 18)
"""Numbers of experts between which the cost of one more is measured."""


def _spec(num_experts: int, top_k: int) -> MoESpec:
    router: dict[str, Any] = {"score": "sigmoid", "scales": "output"}
    sizes = {"num_experts": num_experts, "num_experts_per_token": min(top_k, num_experts), "intermediate_size": NARROW}
    return MoESpec.model_validate({"kind": "moe", **sizes, "router": router})


def _filled(module: nn.Module, buffers: Buffers) -> Any:
    module.to(buffers.dtype)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return module.requires_grad_(requires_grad=False)


def route(buffers: Buffers) -> TableCases:
    """From narrow tokens to scores and experts."""
    cases = []
    for tokens, num_experts, top_k in grid(*buffers.sizes.route):
        router = _filled(Router(_spec(num_experts, top_k), NARROW), buffers)
        x = buffers.take(tokens, NARROW)
        cases.append(Timed(partial(router, x), (x,)))
    return TableCases.both(buffers, buffers.sizes.route, cases)


class _Passing(nn.Module):
    """Experts that do nothing."""

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """The rows as they are."""
        offsets.tolist()
        return x


def dispatch(buffers: Buffers) -> TableCases:
    """Sorting narrow tokens by expert and bringing them back, with experts that do nothing."""
    cases = []
    for pairs, num_experts in grid(*buffers.sizes.dispatch):
        moe = MoE(_spec(num_experts, 1), Width(hidden_size=NARROW, max_seq_len=1))
        moe.experts = _Passing()  # type: ignore[assignment]
        chosen = torch.arange(pairs)[:, None] % num_experts
        inputs = buffers.take(pairs, NARROW), buffers.beside(pairs, 1), chosen
        cases.append(Timed(partial(moe._sorted, *inputs, None), inputs))
    return TableCases.both(buffers, buffers.sizes.dispatch, cases)


def experts(buffers: Buffers) -> TableCases:
    """Narrow experts with one row each, a few and more of them."""
    cases = []
    for count in HIT:
        module = _filled(Experts(_spec(count, 1), NARROW), buffers)
        offsets = torch.arange(1, count + 1, dtype=torch.int32)
        cases.append(Case(partial(module, buffers.take(count, NARROW), offsets)))
    return TableCases((HIT,), cases)
