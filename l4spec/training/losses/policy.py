"""Policy gradients on sampled answers: GRPO, its variant without biases, and REINFORCE against the other samples."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from l4spec.runtime.parallel.loss import IGNORED, Scored

Algorithm = Literal["grpo", "dr_grpo", "reinforce"]
EPS = 1e-4
"""Added to the deviation of a group's rewards (trl)."""


def advantages(rewards: Tensor, algorithm: Algorithm) -> Tensor:
    """Advantages of rewards [groups, samples].

    grpo: (r - mean) / (deviation + 1e-4) of the group (arXiv:2402.03300, section 4.1.2); dr_grpo: r - mean
    (arXiv:2503.20783); reinforce: r less the mean of the group's others (RLOO, arXiv:2402.14740).
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if algorithm == "grpo":
        return centred / (rewards.std(dim=1, keepdim=True) + EPS)
    if algorithm == "reinforce":
        samples = rewards.shape[1]
        return centred * samples / (samples - 1)
    return centred


def surrogate(log_probs: Tensor, old: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) [rows, tokens] with ratio = p / p_old (PPO, arXiv:1707.06347).

    The ratio corrects for samples of an older policy; `advantage` is [rows].
    """
    ratio = (log_probs - old).exp()
    gain = advantage[:, None]
    return -torch.minimum(ratio * gain, ratio.clamp(1 - low, 1 + high) * gain)


def kl_estimate(log_probs: Tensor, reference: Tensor) -> Tensor:
    """p_ref / p - log(p_ref / p) - 1 of each token, never negative; its mean over samples of p is KL(p || p_ref)
    (Schulman's k3; arXiv:2402.03300, equation 4).
    """
    difference = reference - log_probs
    return difference.exp() - difference - 1


def token_weights(labels: Tensor, algorithm: Algorithm, max_answer: int) -> Tensor:
    """Weight of each token in the batch's loss [rows, tokens]; 0 outside answers.

    grpo: 1 / (rows x length of the answer); dr_grpo: 1 / (rows x max_answer); reinforce: 1 / rows, since an answer is
    one action whose probability is the product of its tokens'.
    """
    is_answer = (labels != IGNORED).double()
    rows = labels.shape[0]
    if algorithm == "grpo":
        return is_answer / (rows * is_answer.sum(dim=1, keepdim=True).clamp(min=1))
    return is_answer / (rows * max_answer if algorithm == "dr_grpo" else rows)


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """The loss of rows with `extras` old and reference [rows, tokens], weights [rows, tokens], advantages [rows]."""

    clip_low: float
    clip_high: float
    kl_weight: float = 0.0
    by_answer: bool = False
    """Ratios of whole answers (REINFORCE), not of tokens."""

    def __call__(self, scored: Scored) -> Tensor:
        """See `l4spec.runtime.parallel.loss.Objective`."""
        extras, log_probs = scored.extras, scored.log_probs()
        old, weights = extras["old"], extras["weights"]
        if self.by_answer:
            answers, before = log_probs.sum(dim=1, keepdim=True), old.sum(dim=1, keepdim=True)
            losses = surrogate(answers, before, extras["advantages"], self.clip_low, self.clip_high)
            total = (losses * weights.amax(dim=1, keepdim=True)).sum()
        else:
            losses = surrogate(log_probs, old, extras["advantages"], self.clip_low, self.clip_high)
            total = (losses * weights).sum()
        if self.kl_weight:
            total = total + self.kl_weight * (kl_estimate(log_probs, extras["reference"]) * weights).sum()
        return total


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The chance that one of k samples is right, from `num_right` of `num_samples`: 1 - C(n - c, k) / C(n, k)
    (arXiv:2107.03374, equation 1).
    """
    missed = 1.0
    for drawn in range(k):
        missed *= max(0, num_samples - num_right - drawn) / (num_samples - drawn)
    return 1 - missed


def informative(rewards: Tensor) -> Tensor:
    """Mask of the groups [groups] with an advantage other than 0: their samples did not all get the same reward."""
    return rewards.amax(dim=1) > rewards.amin(dim=1)
