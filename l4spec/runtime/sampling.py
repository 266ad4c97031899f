"""Sampling of the next token from logits."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from l4spec.errors import Problem, UserError

_COLDEST = torch.finfo(torch.float32).tiny
"""Colder ones round to 0 in fp32."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling of a token: greedy at temperature 0, else at random among those that top-k and then top-p keep."""

    temperature: float = 0.0
    """Divisor of the logits; 0 takes the most likely token."""
    top_k: int | None = None
    """Keep the k most likely tokens, and all that are equal to the least likely of them."""
    top_p: float | None = None
    """Keep the smallest set of most likely tokens with a total probability of at least p (arXiv:1904.09751)."""

    def __post_init__(self) -> None:
        problems = list(self._mistakes())
        if problems:
            raise UserError(problems)

    def _mistakes(self) -> Iterable[Problem]:
        if not 0 <= self.temperature < float("inf"):
            yield Problem(f"expected a number of at least 0, found {self.temperature}", "temperature")
        if self.top_k is not None and self.top_k < 1:
            yield Problem(f"expected at least 1, found {self.top_k}", "top_k")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            yield Problem(f"expected a number above 0 and at most 1, found {self.top_p}", "top_p")


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
    """The next token of each sequence [batch] from its logits [batch, vocab]; `generator` makes draws reproducible."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    scores = logits.float()
    # the best has score 0: a temperature near 0 makes the others' -inf, and overflows nowhere
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / max(sampling.temperature, _COLDEST)
    if sampling.top_k is not None:
        scores = _keep_top_k(scores, sampling.top_k)
    if sampling.top_p is not None:
        scores = _keep_top_p(scores, sampling.top_p)
    return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator).squeeze(-1)


def _keep_top_k(scores: Tensor, k: int) -> Tensor:
    least = scores.topk(min(k, scores.shape[-1]), dim=-1).values[:, -1:]
    return scores.masked_fill(scores < least, float("-inf"))


def _keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Drop a token when those more likely than it already reach p; the most likely one always stays."""
    descending, order = scores.sort(dim=-1, descending=True)
    probabilities = descending.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before >= p)
    return scores.masked_fill(dropped, float("-inf"))
