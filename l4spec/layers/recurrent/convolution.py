"""The short causal convolution before a recurrence: each channel's weighted sum of its last few tokens."""

import torch
from torch import Tensor


def short_convolution(x: Tensor, before: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu(sum of weight[:, i] * token i of the last `kernel` ones, the newest last), [rows, tokens, channels].

    `x` is [rows, tokens, channels], `before` the kernel - 1 tokens before it, `weight` [channels, kernel]. Products
    element by element, so that nothing counts as a matrix product.
    """
    padded, num_tokens, kernel = torch.cat((before, x), dim=1), x.shape[1], weight.shape[1]
    total = padded[:, :num_tokens] * weight[:, 0]
    for index in range(1, kernel):
        total = torch.addcmul(total, padded[:, index : index + num_tokens], weight[:, index])
    if bias is not None:
        total = total + bias
    return torch.nn.functional.silu(total)
