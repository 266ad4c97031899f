"""How often the generators of this folder draw: a few hundred times, 5,000 in the exhaustive profile."""

import math
from random import Random

from hypothesis import settings
from hypothesis import strategies as st

FEW, MANY = 200, 5000
IS_EXHAUSTIVE = settings().max_examples >= MANY


def draws(few: int = FEW, many: int = MANY) -> settings:
    """Settings of a test that draws `few` times, or thousands of times in the exhaustive profile.

    `many` is smaller where a draw is a process that is waited for.
    """
    return settings(max_examples=many if IS_EXHAUSTIVE else few, deadline=None)


RANDOMS = st.integers(0, 2**64 - 1).map(Random)
"""Generators of random numbers, each by its seed: an attack is drawn with one, and told apart by nothing else."""


def size(random: Random, most: int) -> int:
    """From 1 to `most`, every order of magnitude as often as the others."""
    return max(1, round(math.exp(random.uniform(0, math.log(most)))))
