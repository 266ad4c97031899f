"""The mixture of experts with its experts on several ranks: tokens travel to the experts they chose, and back."""

import torch
from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context
from l4spec.layers.common.parallel import Axis, Cuts, Ranks, exchange, gather
from l4spec.layers.moe.module import Experts, MoE
from l4spec.layers.moe.spec import MoESpec


class ExpertParallelMoE(MoE):
    """Holds an equal run of the experts; every rank routes its own tokens, and none is dropped on the way."""

    def __init__(self, spec: MoESpec, width: Width, ranks: Ranks, cuts: Cuts) -> None:
        super().__init__(spec, width)
        self.ranks = ranks
        num_held = len(cuts["experts"][ranks.ep.index])
        self.experts = Experts(spec.model_copy(update={"num_experts": num_held}), spec.latent_size or width.hidden_size)
        self.experts.bias_share = 1.0 if ranks.tp.index == 0 else 0.0

    def _routed(self, tokens: Tensor, scores: Tensor, experts: Tensor, context: Context) -> Tensor:
        if self.ranks.ep.size == 1:
            return super()._routed(tokens, scores, experts, context)
        fits = None if self.spec.capacity_factor is None else self._fits(experts, context)
        return self._sorted(tokens, scores, experts, fits)

    def _through_experts(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Rows sorted by expert, `counts` [experts] of each, through experts wherever they are."""
        if self.ranks.ep.size == 1:
            return super()._through_experts(rows, counts)
        arriving = _exchanged_counts(counts.view(self.ranks.ep.size, -1), self.ranks.ep)
        sent, received = counts.view(self.ranks.ep.size, -1).sum(1).tolist(), arriving.sum(1).tolist()
        here = exchange(rows, self.ranks.ep, sent, received)
        order = _by_expert(arriving)
        done = super()._through_experts(here[order], arriving.sum(0, dtype=torch.int32))
        back = torch.empty_like(done).index_copy(0, order, done)
        return exchange(back, self.ranks.ep, received, sent)

    def _batch_around(self, choices: Tensor, num_rows: int) -> tuple[Tensor | int, int]:
        """As on one rank that holds all sequences: those of earlier ranks come first."""
        data, cp = self.ranks.data, self.ranks.cp
        if cp.size == 1:
            return gather(choices.sum(0), data)[: data.index].sum(0), data.size * choices.shape[0]
        of_rows = choices.view(num_rows, -1, choices.shape[1]).sum(1)
        everywhere = gather(gather(of_rows, cp), data)  # [data, cp, rows, experts]
        whole_rows, own = everywhere[data.index].sum(0), everywhere[data.index, cp.index]
        elsewhere = whole_rows - own  # `choices` themselves count those of earlier rows that are here
        before = everywhere[: data.index].sum((0, 1, 2)) + elsewhere.cumsum(0) - elsewhere
        before = before + everywhere[data.index, : cp.index].sum(0)
        return before.repeat_interleave(choices.shape[0] // num_rows, dim=0), int(everywhere.sum())


def _exchanged_counts(counts: Tensor, ep: Axis) -> Tensor:
    """Rows that each rank sends to each expert of this rank, [ranks, experts], from those that this rank sends."""
    ones = [1] * ep.size
    return exchange(counts, ep, ones, ones)


def _by_expert(arriving: Tensor) -> Tensor:
    """The order that sorts rows by expert, given how many of each [ranks, experts] have come in order of ranks."""
    num_ranks, num_experts = arriving.shape
    experts = torch.arange(num_experts, device=arriving.device).repeat(num_ranks)
    return experts.repeat_interleave(arriving.flatten()).argsort(stable=True)
