"""Cross entropy over logits that are cut along the vocabulary: no rank ever holds them all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from l4spec.layers.common.kept_memory import empty_kept
from l4spec.layers.common.parallel import Axis, gather_last, sum_over

IGNORED = -100
"""A label that counts for nothing, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Sequences that a model has run: `labels` [rows, tokens] follow each token, -100 counts not.

    `local_logits` [rows, tokens, len(own_ids)] are this rank's columns of the vocabulary, of which tensor-parallel
    ranks hold `sizes`. `extras` [rows, ...] came with the sequences.
    """

    local_logits: Tensor
    labels: Tensor
    own_ids: range
    tp: Axis
    sizes: tuple[int, ...]
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def log_probs(self) -> Tensor:
        """log p(label) [rows, tokens], 0 where the label counts not."""
        return vocab_parallel_log_probs(self.local_logits, self.labels, self.own_ids, self.tp)

    def logits(self) -> Tensor:
        """All columns [rows, tokens, vocab], on every rank."""
        return gather_last(self.local_logits, self.tp, self.sizes)


class Objective(Protocol):
    """A loss other than cross entropy: a sum over sequences, with weights that make sums over ranks the batch's loss.

    Microbatches, and data-parallel ranks, then only have to be added up.
    """

    def __call__(self, scored: Scored, /) -> Tensor:
        """The loss of these sequences, a scalar."""
        ...


def vocab_parallel_cross_entropy(
    logits: Tensor, labels: Tensor, own_ids: range, tp: Axis, count: Tensor | None = None
) -> Tensor:
    """The mean of -log p(label) over labels that are not -100, the same on every tensor-parallel rank.

    `logits` [..., len(own_ids)] are this rank's columns of the vocabulary, `labels` [...] are ids of all of it
    (Megatron-LM, arXiv:1909.08053, section 3: only sums and maxima over the vocabulary travel, never logits). `count`
    replaces the number of labels that the sum is divided by.
    """
    counts = labels != IGNORED
    total = -vocab_parallel_log_probs(logits, labels, own_ids, tp).sum()
    return total / (counts.sum().clamp(min=1) if count is None else count.to(total.dtype))


def vocab_parallel_log_probs(logits: Tensor, labels: Tensor, own_ids: range, tp: Axis) -> Tensor:
    """log p(label) [...] from `vocab_parallel_cross_entropy`'s logits and labels; 0 where the label is -100.

    For its gradient one tensor like the logits is kept, the probabilities.
    """
    flat, targets = logits.flatten(0, -2), labels.flatten()
    log_probs: Tensor = _LabelLogProbs.apply(flat, targets, own_ids, tp)  # type: ignore[no-untyped-call]
    return log_probs.view_as(labels)


class _LabelLogProbs(torch.autograd.Function):
    """log p(label) [rows] of `flat` logits [rows, len(own_ids)]; the gradient is onehot(label) - p."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, targets: Tensor, own_ids: range, tp: Axis) -> Tensor:
        counts = targets != IGNORED
        highest = flat.amax(dim=-1) if own_ids else flat.new_full((flat.shape[0],), float("-inf"))
        shifted = torch.sub(flat, sum_over(highest, tp, "max")[:, None], out=empty_kept(flat, *flat.shape))
        is_here = (targets >= own_ids.start) & (targets < own_ids.stop)
        column = (targets - own_ids.start).clamp(0, max(len(own_ids) - 1, 0))[:, None]
        own = shifted.gather(-1, column).squeeze(-1) if own_ids else shifted.sum(dim=-1)
        own = torch.where(is_here, own, 0.0)
        exponentials = shifted.exp_()
        total = sum_over(exponentials.sum(dim=-1), tp)
        chosen = sum_over(own, tp)
        ctx.save_for_backward(exponentials.div_(total[:, None]), column, is_here, counts)
        return torch.where(counts, chosen - total.log(), 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, column, is_here, counts = ctx.saved_tensors
        gradient = torch.where(counts, gradients[0], 0.0)
        result = torch.mul(probabilities, -gradient[:, None], out=empty_kept(probabilities, *probabilities.shape))
        if result.shape[-1]:
            result.scatter_add_(-1, column, torch.where(is_here, gradient, 0.0)[:, None])
        return result, None, None, None
