"""Retrieval evaluation by length of the text (needle in a haystack)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l4spec.layers.common.parallel import sum_over
from l4spec.runtime.parallel.loss import IGNORED, Scored
from l4spec.runtime.parallel.model import RankModel
from l4spec.spec.recipe.data import SyntheticSource
from l4spec.spec.recipe.lengths import LengthTest
from l4spec.training.data.mixture import Mixture
from l4spec.training.data.synthetic import HELD_OUT, document_of
from l4spec.training.loop import TrainBatch
from l4spec.units import ceil_div

MOST_TOKENS = 16_384
"""Tokens that a rank runs at a time, of one document at least."""


@dataclass(frozen=True, slots=True)
class LengthScore:
    """Of `asked` questions in documents of `tokens` tokens, the share whose likeliest answer is right."""

    tokens: int
    right: float
    asked: int


def scores_by_length(model: RankModel, mixture: Mixture, test: LengthTest, longest: int) -> list[LengthScore]:
    """A score for each length of the test up to `longest`; the same on every rank, all must call it."""
    return [_score(model, mixture, test, tokens) for tokens in test.tokens if tokens <= longest]


def _score(model: RankModel, mixture: Mixture, test: LengthTest, tokens: int) -> LengthScore:
    data = model.mesh.data.size
    count = ceil_div(test.documents, data) * data
    at_a_time = max(1, MOST_TOKENS // tokens) * data
    right = asked = 0
    for first in range(0, count, at_a_time):
        batch = needle_rows(mixture, test.source, tokens, range(first, min(first + at_a_time, count)))
        right += num_right(model, batch)
        asked += int((batch.labels != IGNORED).sum())
    return LengthScore(tokens, right / asked, asked)


def needle_rows(mixture: Mixture, name: str, length: int, numbers: Sequence[int]) -> TrainBatch:
    """Held-out documents of a source at another length, one a row; labels are those of answers alone.

    Rows of fewer tokens are filled at their ends, which causal attention does not see.
    """
    source = mixture.spec.sources[name]
    assert isinstance(source, SyntheticSource), "recipes are checked"
    ids, learned = [], []
    for number in numbers:
        pieces = [
            (mixture.codec.encode(segment.text), segment.learned)
            for segment in document_of(source, mixture.seed, HELD_OUT + number, length)
        ]
        ids.append([token for piece, _ in pieces for token in piece])
        learned.append([is_learned for piece, is_learned in pieces for _ in piece])
    width = max(map(len, ids))
    filled = torch.tensor([row + [mixture.codec.end_id] * (width - len(row)) for row in ids])
    counts = torch.tensor([row + [False] * (width - len(row)) for row in learned])
    return TrainBatch(filled[:, :-1], filled[:, 1:].masked_fill(~counts[:, 1:], IGNORED))


@torch.no_grad()
def num_right(model: RankModel, batch: TrainBatch) -> int:
    """Number of labels that are the likeliest token at their place; the same on every rank; all must call it."""
    model.eval()

    def right(scored: Scored) -> Tensor:
        hits = (scored.logits().argmax(dim=-1) == scored.labels) & (scored.labels != IGNORED)
        return hits.sum().to(scored.local_logits.dtype)

    own: dict[str, Any] = {name: model.own_rows(given).to(model.device) for name, given in batch.inputs.items()}
    ids, labels = (model.own_rows(x).to(model.device) for x in (batch.input_ids, batch.labels))
    total = model.loss(ids, labels, objective=right, **own)
    return round(float(sum_over(total, model.mesh.data)) / model.mesh.data.size)
