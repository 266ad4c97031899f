"""The short causal convolution before a recurrence: each channel's weighted sum of its last few tokens."""

import torch
from torch import Tensor

from l4spec.layers.common.modules import wide


def short_convolution(x: Tensor, before: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu(sum of weight[:, i] * token i of the last `kernel` ones, the newest last), [rows, tokens, channels].

    `x` is [rows, tokens, channels], `before` the kernel - 1 tokens before it, `weight` [channels, kernel]. Added up in
    fp32, rounded once; products element by element, so that nothing counts as a matrix product.
    """
    padded, num_tokens, kernel = wide(torch.cat((before, x), dim=1)), x.shape[1], weight.shape[1]
    weight = wide(weight)
    total = padded[:, :num_tokens] * weight[:, 0]
    for index in range(1, kernel):
        total = torch.addcmul(total, padded[:, index : index + num_tokens], weight[:, index])
    if bias is not None:
        total = total + wide(bias)
    return torch.nn.functional.silu(total).to(x.dtype)
