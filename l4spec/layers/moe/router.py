"""The router of a mixture of experts: which experts each token chooses, and with which scores."""

import torch
from torch import Tensor, nn

from l4spec.layers.common.modules import Norm, empty, group_last, linear, rms_norm, wide
from l4spec.layers.moe.spec import MoESpec


class Router(nn.Module):
    """Router: the experts that each token chooses, and their scores, in fp32."""

    def __init__(self, spec: MoESpec, hidden_size: int, vocab_size: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.weight = empty(spec.num_experts, hidden_size)
        self.norm = None if spec.router.norm is None else Norm(hidden_size, spec.router.norm.eps)
        self.expert_scale = empty(spec.num_experts) if spec.router.expert_scale else None
        self.bias = empty(spec.num_experts) if spec.router.bias else None
        bias = torch.empty(spec.num_experts) if spec.router.correction_bias else None
        self.register_buffer("correction_bias", bias)
        self.correction_bias: Tensor | None
        table = torch.empty(vocab_size, spec.num_experts_per_token, dtype=torch.long)
        self.register_buffer("experts_of_token", table if spec.router.by_token else None)
        self.experts_of_token: Tensor | None

    def forward(self, x: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens [tokens, hidden], with their ids [tokens], to scores and experts, both [tokens, top-k]."""
        return self.choose(self.logits(x), ids)

    def logits(self, x: Tensor) -> Tensor:
        """Tokens [tokens, hidden] to a logit of each expert [tokens, experts], at least in fp32."""
        x = wide(x)
        if self.norm is not None:
            x = rms_norm(x, wide(self.norm.weight) * x.shape[-1] ** -0.5, self.norm.eps)
        return linear(x, wide(self.weight), None if self.bias is None else wide(self.bias))

    def choose(self, logits: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits [tokens, experts] to scores and experts, both [tokens, top-k]."""
        router, top_k = self.spec.router, self.spec.num_experts_per_token
        if self.experts_of_token is not None:
            assert ids is not None, "experts are looked up by token id"
            experts = self.experts_of_token[ids.flatten()]
            scores = self._scores(logits).gather(-1, experts)
        elif self.correction_bias is None and router.num_groups == 1:
            # scores grow with logits, but saturate: choosing by logits cannot tie where scores do
            chosen, experts = torch.topk(logits, top_k, dim=-1)
            scores = self._softmax_of(chosen, logits) if router.score == "softmax" else self._scores(chosen)
        else:
            all_scores = self._scores(logits)
            experts = torch.topk(self._worth(all_scores), top_k, dim=-1).indices
            scores = all_scores.gather(-1, experts)
        scores = self._weighed(scores)
        return scores if self.expert_scale is None else scores * self.expert_scale[experts], experts

    def taken(self, logits: Tensor, is_taken: Tensor) -> Tensor:
        """Scores [tokens, experts] where experts have chosen tokens, and 0 where not."""
        scores = self._weighed(self._scores(logits) * is_taken)
        return scores if self.expert_scale is None else scores * self.expert_scale

    def _scores(self, logits: Tensor) -> Tensor:
        """Of all experts where they are a softmax, else of each logit."""
        match self.spec.router.score:
            case "sigmoid":
                return logits.sigmoid()
            case "sqrt_softplus":
                return nn.functional.softplus(logits).sqrt()
        return logits.softmax(dim=-1)

    def _weighed(self, scores: Tensor) -> Tensor:
        router = self.spec.router
        if router.renormalize:
            scores = scores / (scores.sum(dim=-1, keepdim=True) + 1e-20)
        return scores * router.scaling_factor if router.scaling_factor != 1.0 else scores

    def _softmax_of(self, chosen: Tensor, logits: Tensor) -> Tensor:
        """Softmax over all experts, at the chosen ones."""
        return (chosen - logits.logsumexp(dim=-1, keepdim=True)).exp()

    def _worth(self, scores: Tensor) -> Tensor:
        """Values by which experts are chosen: corrected scores, -inf outside the best groups."""
        router = self.spec.router
        worth = scores if self.correction_bias is None else scores + self.correction_bias
        if router.num_groups == 1:
            return worth
        by_group = group_last(worth, router.num_groups, -1)
        best_of_each = by_group.topk(2 if router.group_score == "top2_sum" else 1, dim=-1).values
        of_group = best_of_each.sum(dim=-1)
        best = of_group.topk(router.num_limited_groups, dim=-1).indices
        is_open = torch.zeros_like(of_group, dtype=torch.bool).scatter(-1, best, value=True)
        return by_group.masked_fill(~is_open[..., None], float("-inf")).flatten(-2)
