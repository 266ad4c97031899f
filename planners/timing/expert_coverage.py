"""Expected number of distinct experts that a batch of tokens reaches, whose weights a step must read."""

from collections.abc import Sequence
from itertools import pairwise
from math import expm1, log1p


def expected_coverage(num_experts: int, experts_per_token: int, num_tokens: float) -> float:
    """Expected number of distinct experts among `num_experts` that `num_tokens` tokens choose, uniformly at random.

    E (1 - (1 - k/E)^B): each token misses a given expert with probability 1 - k/E, independently of the others.
    """
    if num_tokens <= 0:
        return 0.0
    if experts_per_token >= num_experts:
        return float(num_experts)
    return -num_experts * expm1(num_tokens * log1p(-experts_per_token / num_experts))


def coverage_of_histogram(shares: Sequence[float], experts_per_token: int, num_tokens: float) -> float:
    """As `expected_coverage`, for the routing histogram `shares`: each expert's share of all routed choices.

    An expert with share s is chosen by a token with probability min(1, k s); shares need not be normalised.
    """
    total = sum(shares)
    assert total > 0, "a routing histogram counts at least one choice"
    missed = (1 - min(1.0, experts_per_token * share / total) for share in shares)
    return sum(1.0 - float(miss**num_tokens) for miss in missed)


def coverage_of_busiest(shares: Sequence[float], experts_per_token: int, num_tokens: float, ranks: int) -> float:
    """Expected distinct experts of the rank that reaches most, where `ranks` ranks hold parts in order."""
    total = sum(shares)
    missed = [1 - min(1.0, experts_per_token * share / total) for share in shares]
    reached = [1.0 - float(miss**num_tokens) for miss in missed]
    return max(sum(reached[part.start : part.stop]) for part in parts(len(shares), ranks))


def busiest_share(shares: Sequence[float], ranks: int) -> float:
    """The largest share of all choices that one of `ranks` parts of the experts, in order, gets."""
    return max(sum(shares[part.start : part.stop]) for part in parts(len(shares), ranks)) / sum(shares)


def parts(num_experts: int, ranks: int) -> list[range]:
    """The experts of each rank, as equal as can be: the first ranks hold one more where they do not divide."""
    size, more = divmod(num_experts, ranks)
    starts = [rank * size + min(rank, more) for rank in range(ranks + 1)]
    return [range(start, end) for start, end in pairwise(starts)]
