"""Cross entropy over logits that are cut along the vocabulary: no rank ever holds them all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from l4spec.layers.common.parallel import Axis, gather_last, leave, sum_over

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
    """log p(label) [...] from `vocab_parallel_cross_entropy`'s logits and labels; 0 where the label is -100."""
    flat, targets = logits.flatten(0, -2), labels.flatten()
    counts = targets != IGNORED
    highest = flat.new_full((flat.shape[0],), float("-inf")) if not own_ids else flat.detach().amax(dim=-1)
    shifted = flat - sum_over(highest, tp, "max")[:, None]
    total = leave(shifted.exp().sum(dim=-1), tp)
    is_here = (targets >= own_ids.start) & (targets < own_ids.stop)
    chosen = leave(_chosen(shifted, (targets - own_ids.start), is_here), tp)
    return torch.where(counts, chosen - total.log(), 0.0).view_as(labels)


def _chosen(shifted: Tensor, columns: Tensor, is_here: Tensor) -> Tensor:
    """The logit of each row's label where this rank has it, else 0."""
    if not shifted.shape[-1]:
        return shifted.sum(dim=-1)
    index = columns.clamp(0, shifted.shape[-1] - 1)
    return torch.where(is_here, shifted.gather(-1, index[:, None]).squeeze(-1), 0.0)
