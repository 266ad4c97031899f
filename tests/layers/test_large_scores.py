"""Softmaxes whose parts are put together by hand stay exact however large the scores: torch's own is the oracle."""

import pytest
import torch

from l4spec.layers.attention.compute import softmax_beside
from l4spec.layers.attention.ring import Merged, attend_with_sums

ROUNDINGS = 16 * torch.finfo(torch.float32).eps
"""A sum of 12 weights and a quotient: some ten roundings, whatever the scores."""


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4, -1e4, 1e30])
def test_a_sink_beside_scores_is_one_more_column(size: float) -> None:
    scores, sinks = _random(3, 5, 12) + size, _random(3, 5, seed=1) + size
    scores[:, :, 7:] = float("-inf")
    expected = torch.cat([scores, sinks[..., None]], dim=-1).softmax(dim=-1)[..., :-1]
    torch.testing.assert_close(softmax_beside(scores.clone(), sinks), expected, rtol=ROUNDINGS, atol=0)


def test_a_sink_alone_leaves_nothing() -> None:
    assert softmax_beside(torch.full((2, 3), float("-inf")), torch.zeros(2)).count_nonzero() == 0


def test_gradients_reach_scores_and_sinks() -> None:
    scores, sinks = (x.double().requires_grad_() for x in (_random(2, 6), _random(2, seed=1)))
    assert torch.autograd.gradcheck(lambda a, b: softmax_beside(a * 1.0, b), (scores, sinks))


@pytest.mark.parametrize("cap", [None, 5e4])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_blocks_of_keys_add_up_to_all_of_them(scale: float, cap: float | None) -> None:
    """Equal keys, so that a score's own rounding changes no weight."""
    query, key, value = _random(1, 2, 3, 8).abs(), torch.ones(1, 2, 12, 8), _random(1, 2, 12, 8, seed=1)
    merged = Merged(*attend_with_sums(query, key[:, :, :5], value[:, :, :5], causal=False, scale=scale, cap=cap))
    merged.add(*attend_with_sums(query, key[:, :, 5:], value[:, :, 5:], causal=False, scale=scale, cap=cap))
    expected = value.double().mean(dim=2, keepdim=True).expand(1, 2, 3, 8)
    # the two log-sum-exps differ by log(7 / 5), to the rounding of the scores: all of the error that is left
    allowed = ROUNDINGS + 2 * torch.finfo(torch.float32).eps * float((query.sum(dim=-1) * scale).max())
    assert float((merged.result - expected).abs().max()) <= allowed * float(value.abs().max())
