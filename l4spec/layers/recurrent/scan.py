"""The scan of a selective state space in its dual form (arXiv:2405.21060): a state that forgets and is added to.

S_t = exp(g_t) S_{t-1} + k_t v_t^T, and a token reads S_t^T q_t. Chunks of tokens go at once, as attention without a
softmax, and the state passes between them.
"""

import torch
from torch import Tensor

from l4spec.layers.recurrent.chunks import chunks_of


def selective_scan(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Selective scan: outputs [rows, heads, tokens, value_dim] and the last state [rows, heads, key_dim, value_dim].

    `query` and `key` are [rows, heads, tokens, key_dim], `decay` (g <= 0, the log of the share that stays) [rows,
    heads, tokens]; all in fp32 or wider. A token with g = 0 and v = 0 leaves the state unchanged.
    """
    if query.shape[2] == 1:
        state = state * decay.exp()[..., None] + key.transpose(2, 3) @ value
        return query @ state, state
    read, first = [], 0
    for size in chunks_of(query.shape[2]):
        here = slice(first, first + size)
        result, state = _chunk(query[:, :, here], key[:, :, here], value[:, :, here], decay[:, :, here], state)
        read.append(result)
        first += size
    return (read[0] if len(read) == 1 else torch.cat(read, dim=2)), state


def _chunk(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    passed = decay.cumsum(-1)
    later = torch.ones(decay.shape[-1], decay.shape[-1], dtype=torch.bool, device=decay.device).triu(1)
    within = (passed[..., :, None] - passed[..., None, :]).masked_fill(later, float("-inf")).exp()
    scores = (query @ key.transpose(2, 3)) * within
    kept = passed.exp()[..., None]
    result = (query * kept) @ state + scores @ value
    left = (passed[..., -1:] - passed).exp()[..., None]
    return result, state * kept[..., -1:, :] + (key * left).transpose(2, 3) @ value
