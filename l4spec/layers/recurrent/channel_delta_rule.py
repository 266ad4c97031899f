"""The gated delta rule with a decay per channel of a key (Kimi Delta Attention, arXiv:2510.26692).

S_t = D_t S_{t-1} + k_t (beta_t (v_t - (D_t S_{t-1})^T k_t))^T with D_t = diag(exp(g_t)), and a token reads S_t^T q_t.
Chunks of tokens go at once, as with one decay per head. The decay from token j to token i differs by channel, so that
it is not a factor of the product of key and query: keys are decayed for each later token of their chunk, by factors
that are never above 1.
"""

import torch
from torch import Tensor

from l4spec.layers.recurrent.chunks import CHANNEL_CHUNK
from l4spec.layers.recurrent.delta_rule import by_chunks


def channel_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Gated delta rule with a decay per channel: outputs [rows, heads, tokens, value_dim] and the last state.

    The state is [rows, heads, key_dim, value_dim]. `query`, `key` and `decay` (g <= 0, the log of the share that stays)
    are [rows, heads, tokens, key_dim], queries and keys scaled and normed; `beta` [rows, heads, tokens]; all in fp32 or
    wider. A token with g = 0 and beta = 0 leaves the state unchanged.
    """
    if query.shape[2] == 1:
        return _one_step(query, key, value, decay, beta, state)
    return by_chunks(_chunk, CHANNEL_CHUNK, (query, key, value, decay, beta), state)


def _one_step(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    state = state * decay.exp().transpose(2, 3)
    correction = (value - key @ state) * beta[..., None]
    state = state + key.transpose(2, 3) @ correction
    return query @ state, state


def _chunk(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens of one chunk."""
    passed = decay.cumsum(-2)
    weighted = key * beta[..., None]
    system, scores = _products(torch.stack((weighted, query), dim=-2), key, passed).unbind(-2)
    kept = passed.exp()
    target = value * beta[..., None] - (weighted * kept) @ state
    correction = torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)
    result = (query * kept) @ state + scores @ correction
    left = (passed[..., -1:, :] - passed).exp()
    return result, state * kept[..., -1, :, None] + (key * left).transpose(2, 3) @ correction


def _products(rows: Tensor, key: Tensor, passed: Tensor) -> Tensor:
    """Products of each token's `rows` [.., tokens, 2, key_dim] with every decayed key: [.., tokens, 2, tokens]."""
    size = passed.shape[-2]
    later = torch.ones(size, size, dtype=torch.bool, device=passed.device).triu(1)
    left = passed[..., :, None, :] - passed[..., None, :, :]
    left = left.masked_fill_(later[..., None], float("-inf")).exp_().mul(key[..., None, :, :])
    return rows @ left.transpose(-1, -2)
