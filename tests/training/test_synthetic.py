"""The text that runs train on."""

import math
from collections import Counter
from itertools import pairwise

import torch

from l4spec.training.run.synthetic import BRANCHES, batch_of


def test_a_step_has_the_same_text_in_every_run_and_other_steps_and_seeds_have_others() -> None:
    first = batch_of(1, 5, 4, 16, 512)
    assert torch.equal(first, batch_of(1, 5, 4, 16, 512))
    assert first.shape == (4, 17)
    assert not torch.equal(first, batch_of(1, 6, 4, 16, 512))
    assert not torch.equal(first, batch_of(2, 5, 4, 16, 512))


def test_every_word_has_four_successors_alike() -> None:
    ids = batch_of(0, 0, 64, 512, 48)
    assert int(ids.max()) < 48
    followers: dict[int, list[int]] = {}
    for row in ids.tolist():
        for word, following in pairwise(row):
            followers.setdefault(word, []).append(following)
    assert max(len(set(successors)) for successors in followers.values()) == BRANCHES
    often = [successors for successors in followers.values() if len(successors) >= 100]  # few words lead to some words
    assert len(often) > 40
    for successors in often:
        counts = Counter(successors)
        assert len(counts) == BRANCHES
        deviation = math.sqrt(len(successors) * (1 - 1 / BRANCHES) / BRANCHES)  # of a binomial draw
        assert all(abs(count - len(successors) / BRANCHES) < 5 * deviation for count in counts.values())
