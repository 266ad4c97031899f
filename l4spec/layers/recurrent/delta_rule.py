"""The gated delta rule (arXiv:2412.06464): a state that forgets, and corrects what it returns for a key.

S_t = exp(g_t) S_{t-1} + k_t (beta_t (v_t - exp(g_t) S_{t-1}^T k_t))^T, and a token reads S_t^T q_t. Chunks of tokens go
at once (arXiv:2406.06484): inside a chunk the corrections solve a triangular system, and the state passes between them.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from l4spec.layers.recurrent.chunks import CHUNK, chunks_of


def delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Gated delta rule: outputs [rows, heads, tokens, value_dim] and the last state [rows, heads, key_dim, value_dim].

    `query` and `key` are [rows, heads, tokens, key_dim], scaled and normed; `decay` (g <= 0, the log of the share that
    stays) and `beta` [rows, heads, tokens]; all in fp32 or wider. A token with g = 0 and beta = 0 leaves the state
    unchanged.
    """
    if query.shape[2] == 1:
        return _one_step(query, key, value, decay, beta, state)
    return by_chunks(_chunk, CHUNK, (query, key, value, decay, beta), state)


def by_chunks(
    chunk: Callable[..., tuple[Tensor, Tensor]], size: int, of_tokens: tuple[Tensor, ...], state: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs of `chunk(*parts, state)` over chunks of `size` tokens [rows, heads, tokens, ..], and the last state."""
    read = []
    lengths = chunks_of(of_tokens[0].shape[2], size)
    for parts in zip(*(torch.split(x, lengths, dim=2) for x in of_tokens), strict=True):
        result, state = chunk(*parts, state)
        read.append(result)
    return (read[0] if len(read) == 1 else torch.cat(read, dim=2)), state


def unit_length(x: Tensor) -> Tensor:
    """x / sqrt(sum of squares + 1e-6) of the last dimension, as the reference norms queries and keys."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


def _one_step(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    state = state * decay.exp()[..., None]
    correction = (value - key @ state) * beta[..., None]
    state = state + key.transpose(2, 3) @ correction
    return query @ state, state


def _chunk(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens of one chunk; `within` [.., i, j] is the decay from token j to token i."""
    passed = decay.cumsum(-1)
    later = torch.ones(decay.shape[-1], decay.shape[-1], dtype=torch.bool, device=decay.device).triu(1)
    within = (passed[..., :, None] - passed[..., None, :]).masked_fill(later, float("-inf")).exp()
    weighted = key * beta[..., None]
    system = (weighted @ key.transpose(2, 3)) * within
    kept = passed.exp()[..., None]
    target = value * beta[..., None] - (weighted * kept) @ state
    correction = torch.linalg.solve_triangular(system, target, upper=False, unitriangular=True)
    scores = (query @ key.transpose(2, 3)) * within
    result = (query * kept) @ state + scores @ correction
    left = (passed[..., -1:] - passed).exp()[..., None]
    return result, state * kept[..., -1:, :] + (key * left).transpose(2, 3) @ correction


def _solve_flops(system: torch.Size, right: torch.Size, *args: object, **kwargs: object) -> int:
    """From shapes: a unit triangle of n rows takes n (n - 1) / 2 multiply-adds for each column."""
    rows, columns = right[-2], right[-1]
    return rows * (rows - 1) * columns * (right.numel() // (rows * columns) if right.numel() else 0)


register_flop_formula(torch.ops.aten.linalg_solve_triangular)(_solve_flops)
