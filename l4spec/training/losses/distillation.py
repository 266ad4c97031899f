"""Codistillation: a student learns from the data (hard targets) and from a teacher's distribution (soft ones)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from l4spec.runtime.parallel.loss import IGNORED, Scored

Divergence = Literal["forward_kl", "reverse_kl"]


def divergence(student: Tensor, teacher: Tensor, kind: Divergence) -> Tensor:
    """KL [...] between logits [..., vocab]: of the teacher from the student (forward), or the other way round."""
    ours, theirs = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
    return kl(theirs, ours) if kind == "forward_kl" else kl(ours, theirs)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum p (log p - log q) [...] over the last dimension; 0 log 0 is 0."""
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p == float("-inf"), 0.0, terms).sum(dim=-1)


def top_k_logits(logits: Tensor, k: int | None) -> Tensor:
    """Logits [..., vocab] with all but the k largest at -inf, so that their softmax is renormalized over these."""
    if k is None or k >= logits.shape[-1]:
        return logits
    values, places = logits.topk(k, dim=-1)
    return torch.full_like(logits, float("-inf")).scatter(-1, places, values)


def dynamic_weight(student: Tensor, teacher: Tensor, most: float) -> Tensor:
    """most x min(1, student's loss / teacher's): `most` until the student is better than its teacher, then less.

    Meta names dynamic weights without a formula (ai.meta.com/blog/llama-4-multimodal-intelligence); this one is ours.
    """
    return most * (student / teacher.clamp(min=1e-12)).clamp(max=1.0)


@dataclass(slots=True)
class DistillObjective:
    """The mean over a batch's `num_labels` of w T^2 KL + (1 - w) CE; `extras` has teacher [rows, tokens, vocab] logits.

    T^2 keeps the size of gradients (arXiv:1503.02531, section 2). `soft_weight` may be changed between steps; with
    `dynamic` each token weighs its own by `dynamic_weight`.
    """

    kind: Divergence
    soft_weight: float
    num_labels: float
    temperature: float = 1.0
    top_k: int | None = None
    dynamic: bool = False

    def __call__(self, scored: Scored) -> Tensor:
        """See `l4spec.runtime.parallel.loss.Objective`."""
        hard = -scored.log_probs()
        counts = scored.labels != IGNORED
        logits, teacher = scored.logits() / self.temperature, scored.extras["teacher"] / self.temperature
        soft = divergence(logits, top_k_logits(teacher, self.top_k), self.kind) * self.temperature**2
        weight: Tensor | float = self.soft_weight
        if self.dynamic:
            known = teacher.log_softmax(-1).gather(-1, scored.labels.clamp(min=0)[..., None]).squeeze(-1)
            weight = dynamic_weight(hard.detach(), -known, self.soft_weight)
        return ((weight * soft + (1 - weight) * hard) * counts).sum() / self.num_labels
