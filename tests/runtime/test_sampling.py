"""Choosing tokens: greedy takes the best, top-k and top-p leave what they say, seeds repeat, frequencies are right."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from l4spec.errors import UserError
from l4spec.runtime.sampling import Sampling, choose

LOGITS = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()


def drawn(sampling: Sampling, count: int = 2000) -> torch.Tensor:
    """How often each token of LOGITS is drawn, as shares."""
    generator = torch.Generator().manual_seed(0)
    tokens = choose(LOGITS.expand(count, -1), sampling, generator)
    return torch.bincount(tokens, minlength=4) / count


def test_at_temperature_zero_the_most_likely_token_is_taken() -> None:
    assert drawn(Sampling()).tolist() == [1, 0, 0, 0]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    shares = drawn(Sampling(temperature=1.0), 20_000)
    assert torch.allclose(shares, LOGITS.exp()[0], atol=4 * (0.25 / 20_000) ** 0.5)


@pytest.mark.parametrize("temperature", [1e-9, 1e-45, 1e-300])
def test_next_to_temperature_zero_the_most_likely_token_is_taken(temperature: float) -> None:
    logits = torch.tensor([[90.0, -90.0, 89.0, 0.0]])
    assert choose(logits, Sampling(temperature, top_k=3, top_p=0.9), None).tolist() == [0]


def test_temperature_flattens_and_sharpens() -> None:
    assert drawn(Sampling(temperature=0.25))[0] > 0.8
    assert drawn(Sampling(temperature=100.0))[1] > 0.2


@pytest.mark.parametrize(
    ("top_k", "left"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (99, [0, 1, 2, 3])]
)
def test_top_k_leaves_k_tokens_and_ties_at_the_edge(top_k: int, left: list[int]) -> None:
    assert drawn(Sampling(temperature=1.0, top_k=top_k)).nonzero().flatten().tolist() == left


@pytest.mark.parametrize(("top_p", "left"), [(0.01, 1), (0.49, 1), (0.6, 2), (0.79, 2), (0.85, 3), (1.0, 4)])
def test_top_p_leaves_the_fewest_tokens_that_reach_p(top_p: float, left: int) -> None:
    assert len(drawn(Sampling(temperature=1.0, top_p=top_p)).nonzero()) == left


@given(st.integers(0, 2**31), st.floats(0.1, 3), st.integers(1, 50), st.floats(0.01, 1))
def test_a_seed_repeats_its_draws_and_never_draws_what_was_dropped(seed: int, heat: float, k: int, p: float) -> None:
    sampling, logits = Sampling(heat, k, p), torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))
    first, again = (choose(logits, sampling, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(first, again)
    best = logits.topk(k, dim=-1).indices
    assert (best == first[:, None]).any(dim=-1).all()


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, float], name: str) -> None:
    with pytest.raises(UserError, match=name):
        Sampling(**wrong)  # type: ignore[arg-type]
