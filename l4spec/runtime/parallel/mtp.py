"""The loss of multi-token prediction in training: targets of each depth, its weight, and the losses of a step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from l4spec.runtime.parallel.loss import IGNORED


@dataclass(slots=True)
class MTPLoss:
    """`weight` of the mean of the modules' losses beside the model's own (DeepSeek-V3, arXiv:2412.19437, eq. 24, 25).

    `depths` [modules] is the mean cross entropy of each module over all labels of the last step, in nats per token,
    without the weight; the same on every rank.
    """

    weight: float
    depths: Tensor | None = None


def further_targets(
    input_ids: Tensor, labels: Tensor, sequence_ids: Tensor | None, depth: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the module of a depth (from 1): ids and labels [rows, tokens], `depth` places further.

    A label is -100 where it would be of another sequence, or beyond the row's last one; ids mean nothing there. Such
    places are the last ones of a sequence, so that no label of it depends on them.
    """
    ids = torch.cat((input_ids[:, depth:], input_ids[:, -1:].expand(-1, min(depth, input_ids.shape[1]))), dim=1)
    further = torch.full_like(labels, IGNORED)
    further[:, :-depth] = labels[:, depth:]
    if sequence_ids is not None:
        runs = torch.zeros_like(sequence_ids)
        runs[:, 1:] = (sequence_ids[:, 1:] != sequence_ids[:, :-1]).cumsum(dim=1)
        further[:, :-depth] = further[:, :-depth].masked_fill(runs[:, depth:] != runs[:, :-depth], IGNORED)
    return ids, further


def counts_by_depth(labels: Tensor, sequence_ids: Tensor | None, num_modules: int) -> Tensor:
    """Number of labels that count at each depth [modules], for `labels` [rows, tokens] of the model itself."""
    depths = range(1, num_modules + 1)
    return torch.stack([(further_targets(labels, labels, sequence_ids, d)[1] != IGNORED).sum() for d in depths])
