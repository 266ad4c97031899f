"""Cross entropy over logits that are cut along the vocabulary: no rank ever holds them all."""

import torch
from torch import Tensor

from l4spec.layers.common.parallel import Axis, leave, sum_over

IGNORED = -100
"""A label that counts for nothing, as in `torch.nn.functional.cross_entropy`."""


def vocab_parallel_cross_entropy(
    logits: Tensor, labels: Tensor, own_ids: range, tp: Axis, count: Tensor | None = None
) -> Tensor:
    """The mean of -log p(label) over labels that are not -100, the same on every tensor-parallel rank.

    `logits` [..., len(held)] are this rank's columns of the vocabulary, `labels` [...] are ids of all of it
    (Megatron-LM, arXiv:1909.08053, section 3: only sums and maxima over the vocabulary travel, never logits). `count`
    replaces the number of labels that the sum is divided by.
    """
    flat, targets = logits.flatten(0, -2), labels.flatten()
    counts = targets != IGNORED
    highest = flat.new_full((flat.shape[0],), float("-inf")) if not own_ids else flat.detach().amax(dim=-1)
    shifted = flat - sum_over(highest, tp, "max")[:, None]
    total = leave(shifted.exp().sum(dim=-1), tp)
    is_here = (targets >= own_ids.start) & (targets < own_ids.stop)
    chosen = leave(_chosen(shifted, (targets - own_ids.start), is_here), tp)
    losses = torch.where(counts, total.log() - chosen, 0.0)
    return losses.sum() / (counts.sum().clamp(min=1) if count is None else count.to(losses.dtype))


def _chosen(shifted: Tensor, columns: Tensor, is_here: Tensor) -> Tensor:
    """The logit of each row's label where this rank has it, else 0."""
    if not shifted.shape[-1]:
        return shifted.sum(dim=-1)
    index = columns.clamp(0, shifted.shape[-1] - 1)
    return torch.where(is_here, shifted.gather(-1, index[:, None]).squeeze(-1), 0.0)
