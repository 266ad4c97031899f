"""The torch module of the switch layer, alone and with its experts on several ranks."""

import torch
from torch import Tensor, nn

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule, Linear, empty, linear, wide
from l4spec.layers.common.parallel import Cuts, Ranks, exchange
from l4spec_switch.spec import SwitchSpec


class ReluExperts(nn.Module):
    """Stacked experts: wi [experts, ffn, hidden], wo [experts, hidden, ffn]."""

    def __init__(self, num_experts: int, ffn_size: int, hidden_size: int) -> None:
        super().__init__()
        self.wi = empty(num_experts, ffn_size, hidden_size)
        self.wo = empty(num_experts, hidden_size, ffn_size)

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Rows [rows, hidden] in order of experts, counts[e] of each, to [rows, hidden]."""
        parts = [
            linear(linear(part, self.wi[expert], None).relu(), self.wo[expert], None)
            for expert, part in enumerate(torch.split(rows, counts))
            if len(part)
        ]
        done = torch.cat(parts) if parts else torch.zeros_like(rows)
        if not torch.is_grad_enabled():
            return done
        return done + (self.wi.sum() + self.wo.sum()) * 0  # experts without a token have a gradient too: zero


class Switch(LayerModule):
    """p(expert) * expert(x) with the likeliest expert of each token; the router in fp32."""

    def __init__(self, spec: SwitchSpec, width: Width) -> None:
        super().__init__()
        self.num_experts = spec.num_experts
        self.router = Linear(width.hidden_size, spec.num_experts, bias=False)
        self.experts = ReluExperts(spec.num_experts, spec.intermediate_size, width.hidden_size)

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to [batch, tokens, hidden]."""
        tokens = x.flatten(0, 1)
        probabilities = linear(wide(tokens), wide(self.router.weight), None).softmax(-1)
        chosen, experts = probabilities.max(-1)
        counts = torch.bincount(experts, minlength=self.num_experts)
        if context.record is not None:
            context.record(self.node_id, counts, counts.new_zeros(()))
        order = experts.argsort(stable=True)
        done = self._through_experts(tokens[order], counts)
        back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
        return (done[back] * chosen.to(x.dtype)[:, None]).view_as(x)

    def _through_experts(self, rows: Tensor, counts: Tensor) -> Tensor:
        result: Tensor = self.experts(rows, counts.tolist())
        return result


class SwitchOnRanks(Switch):
    """Holds an equal run of the experts: tokens travel to the one that they chose, and back."""

    def __init__(self, spec: SwitchSpec, width: Width, ranks: Ranks, cuts: Cuts) -> None:
        super().__init__(spec, width)
        self.ranks = ranks
        num_here = len(cuts["experts"][ranks.ep.index])
        self.experts = ReluExperts(num_here, spec.intermediate_size, width.hidden_size)

    def _through_experts(self, rows: Tensor, counts: Tensor) -> Tensor:
        ep = self.ranks.ep
        if ep.size == 1:
            return super()._through_experts(rows, counts)
        leaving = counts.view(ep.size, -1).to(torch.int32)
        arriving = exchange(leaving, ep, [1] * ep.size, [1] * ep.size)
        sent, received = leaving.sum(1).tolist(), arriving.sum(1).tolist()
        experts = torch.arange(arriving.shape[1], device=rows.device).repeat(ep.size)
        order = experts.repeat_interleave(arriving.flatten()).argsort(stable=True)
        here = exchange(rows, ep, sent, received)
        done = super()._through_experts(here[order], arriving.sum(0))
        return exchange(torch.empty_like(done).index_copy(0, order, done), ep, received, sent)
