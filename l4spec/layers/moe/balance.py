"""Load balancing of experts in training: losses on the router, a bias that is updated, experts that choose tokens.

Losses are added to a layer's scores without changing them (`attach`): the backward pass then carries the loss's own
gradient to the router, through microbatches, pipeline stages and activation checkpointing, and the model needs to pass
no list of losses. Ranks whose gradients are averaged each attach the share of their own tokens.
"""

from typing import Any, Literal

import torch
from torch import Tensor


def gate_probabilities(logits: Tensor, score: Literal["sigmoid", "softmax", "sqrt_softplus"]) -> Tensor:
    """Scores divided by their sum over experts [..., experts], in the dtype of `logits`.

    Sigmoid scores s / sum(s) (DeepSeek-V3, arXiv:2412.19437, equation 18) are computed as softmax(log s), so that they
    add up to 1 however small all scores are: with an epsilon in the denominator instead, a router can shrink the loss
    by shrinking every score (Megatron-LM, issue 1545).
    """
    if score == "sigmoid":
        return torch.nn.functional.logsigmoid(logits).softmax(dim=-1)
    return (torch.nn.functional.softplus(logits).log() / 2 if score == "sqrt_softplus" else logits).softmax(dim=-1)


def switch_loss(shares: Tensor, probabilities: Tensor) -> Tensor:
    """E sum_e f_e P_e of [..., experts] (Switch Transformer, arXiv:2101.03961, equation 4): 1 where both are even.

    `shares` f are of choices and carry no gradient, `probabilities` P are means over tokens. Below 1 is possible, where
    many tokens barely choose an expert that the others shun.
    """
    return shares.shape[-1] * (shares * probabilities).sum(dim=-1)


def auxiliary_loss(shares: Tensor, probabilities: Tensor) -> Tensor:
    """A loss with the gradient of `switch_loss` and the value E sum_e f_e^2, [...] of [..., experts].

    The value is at least 1 for any gate (Cauchy-Schwarz), and 1 only where every expert gets as much: the reported
    value cannot fall without better balance. Left out: the factor top-k of transformers' `load_balancing_loss_func`.
    """
    soft = switch_loss(shares, probabilities)
    return soft + (switch_loss(shares, shares) - soft).detach()


def z_loss(logits: Tensor) -> Tensor:
    """(log sum_e exp(logit_e))^2 of every token, [tokens] (ST-MoE, arXiv:2202.08906, equation 5)."""
    return logits.logsumexp(dim=-1).square()


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, torch.ones_like(ctx.like)


def attach(carrier: Tensor, loss: Tensor) -> Tensor:
    """`carrier` as it is, whose backward pass also adds `loss` (a scalar) to whatever is differentiated."""
    result: Tensor = _Attach.apply(carrier, loss)  # type: ignore[no-untyped-call]
    return result


def moved_bias(bias: Tensor, load: Tensor, rate: float) -> Tensor:
    """The correction bias [experts] after a step in which `load` [experts] choices came to each expert.

    Up by `rate` where an expert got less than the mean, down where more (DeepSeek-V3, arXiv:2412.19437, section 2.1.2),
    and centred, for a common shift changes no choice and would only grow (torchtitan, issue 1506).
    """
    moved = bias + rate * torch.sign(load.mean() - load).to(bias.dtype)
    return moved - moved.mean()


def chosen_by_experts(worth: Tensor, num_taken: int) -> Tensor:
    """Tokens that each expert takes, bool [tokens, experts]: each column's `num_taken` largest (arXiv:2202.09368)."""
    taken = torch.topk(worth, min(num_taken, worth.shape[0]), dim=0).indices
    return torch.zeros_like(worth, dtype=torch.bool).scatter(0, taken, value=True)
