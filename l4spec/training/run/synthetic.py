"""Endless synthetic text: which tokens are in a step depends on seed and step alone, not on layout or rank."""

import torch
from torch import Tensor

BRANCHES = 4
"""Words that may follow a word, equally likely: no model can predict better than ln 4 = 1.386 nats per token."""
MOST_WORDS = 64
_STRIDE = 1_000_003
"""Keeps the seeds of steps apart from those of other runs."""


def batch_of(seed: int, step: int, batch: int, num_tokens: int, vocab_size: int) -> Tensor:
    """Token ids [batch, num_tokens + 1] of a step: a walk in which each of a few words has 4 successors."""
    table = _successors(seed, vocab_size)
    draw = torch.Generator().manual_seed((seed * _STRIDE + step + 1) % 2**63)
    start = torch.randint(len(table), (batch,), generator=draw)
    choices = torch.randint(BRANCHES, (batch, num_tokens), generator=draw)
    tokens = [start]
    for position in range(num_tokens):
        tokens.append(table[tokens[-1], choices[:, position]])
    return torch.stack(tokens, dim=1)


def _successors(seed: int, vocab_size: int) -> Tensor:
    words = min(vocab_size, MOST_WORDS)
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(words, generator=draw)[:BRANCHES] for _ in range(words)])
