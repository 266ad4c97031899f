"""The delta rule with a decay per channel: chunks agree with the recurrence token by token, however fast it forgets."""

import pytest
import torch
from torch import Tensor

from l4spec.layers.recurrent.channel_delta_rule import channel_delta_rule
from l4spec.layers.recurrent.delta_rule import delta_rule, unit_length

ROWS, HEADS, KEY, VALUE = 2, 3, 6, 5
ROUNDINGS = 1e-11
"""Tens of tokens of six channels in fp64: some thousand roundings of 1e-16, amplified by systems of 16 tokens."""


def drawn(tokens: int, forgetting: float, seed: int = 0) -> tuple[Tensor, ...]:
    """Query, key, value, decay, beta and state in fp64; decays of `forgetting` in the mean, slow and fast channels."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(ROWS, HEADS, *shape, generator=generator, dtype=torch.float64)

    query, key = unit_length(random(tokens, KEY)), unit_length(random(tokens, KEY))
    decay = -forgetting * random(tokens, KEY).abs() * torch.logspace(-2, 1, KEY, dtype=torch.float64)
    return query, key, random(tokens, VALUE), decay, random(tokens).sigmoid(), random(KEY, VALUE)


def token_by_token(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as its paper writes it, outer products and all."""
    read = []
    for t in range(query.shape[2]):
        state = state * decay[:, :, t, :, None].exp()
        wrong = value[:, :, t] - torch.einsum("bhkv,bhk->bhv", state, key[:, :, t])
        state = state + torch.einsum("bhk,bhv->bhkv", key[:, :, t], wrong * beta[:, :, t, None])
        read.append(torch.einsum("bhkv,bhk->bhv", state, query[:, :, t]))
    return torch.stack(read, dim=2), state


@pytest.mark.parametrize("forgetting", [0.0, 0.01, 1.0, 1e3])
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 50])
def test_chunks_agree_with_the_recurrence(tokens: int, forgetting: float) -> None:
    parts = drawn(tokens, forgetting)
    for got, expected in zip(channel_delta_rule(*parts), token_by_token(*parts), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDINGS)


def test_equal_decays_of_all_channels_are_one_decay_a_head() -> None:
    query, key, value, decay, beta, state = drawn(37, 0.1)
    one = decay[..., 0]
    got = channel_delta_rule(query, key, value, one[..., None].expand_as(key), beta, state)
    for ours, expected in zip(got, delta_rule(query, key, value, one, beta, state), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=ROUNDINGS)


def test_a_channel_that_forgets_at_once_overflows_nothing_in_fp32() -> None:
    """Sums of decays reach -1e6 within a chunk; a power with the other sign would be infinite in fp32 from 89 on."""
    parts = tuple(part.float().requires_grad_() for part in drawn(40, 1e4))
    read, state = channel_delta_rule(*parts)
    torch.autograd.backward((read.sum() + state.sum(),))
    gradients = [part.grad for part in parts if part.grad is not None]
    assert len(gradients) == len(parts)
    assert all(torch.isfinite(tensor).all() for tensor in (read, state, *gradients))


def test_gradients_are_those_of_finite_differences() -> None:
    parts = tuple(part[:1, :1].clone().requires_grad_() for part in drawn(18, 0.3))
    assert torch.autograd.gradcheck(channel_delta_rule, parts)
