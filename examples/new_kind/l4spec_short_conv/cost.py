"""Cost of a gated short convolution: four square projections, and a cache of a few tokens for text of any length."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import (
    Bound,
    Buffer,
    CacheEntry,
    Declaration,
    Dim,
    Elementwise,
    Matmul,
    Operation,
    Parameter,
    Work,
    linear,
    tokens_of,
)
from l4spec_short_conv.spec import ShortConvSpec


def declare(spec: ShortConvSpec, width: Width) -> Declaration:
    """b_proj, c_proj, x_proj, out_proj [hidden, hidden] and one filter per channel, conv [hidden, kernel_size].

    8 * hidden^2 FLOPs per token. The convolution is element-wise per channel, which counts no FLOPs by convention: its
    2 * hidden * kernel_size would add kernel_size / (4 * hidden), below 0.1 %. Channels are cut as an FFN's are.
    """
    hidden, channels = Dim("hidden", width.hidden_size), Dim("ffn", width.hidden_size)
    b, c, x = (linear(f"{name}_proj", channels, hidden, "attention")[0] for name in "bcx")
    conv = Parameter("conv", (channels, Dim("kernel", spec.kernel_size)), "attention", "other")
    (out,) = linear("out_proj", hidden, channels, "attention")
    num_before = spec.kernel_size - 1

    def operations(work: Work) -> tuple[Operation, ...]:
        elements = work.num_tokens * channels.size
        return (
            Matmul("b_proj", work.num_tokens, b),  # u @ W_b.T
            Matmul("x_proj", work.num_tokens, x),  # u @ W_x.T
            Elementwise("gate_input", elements, reads=2),  # b * x
            Elementwise("convolve", elements, reads=spec.kernel_size),  # sum of kernel_size earlier tokens
            Matmul("c_proj", work.num_tokens, c),  # u @ W_c.T
            Elementwise("gate_output", elements, reads=2),  # c * convolved
            Matmul("out_proj", work.num_tokens, out),  # product @ W_out.T
        )

    def buffers(work: Work, *names: str) -> tuple[Buffer, ...]:
        padded = Buffer("padded", work.num_tokens + work.num_sequences * num_before, (channels,))
        normed = Buffer("normed_input", work.num_tokens, (hidden,))
        return (normed, padded, *(Buffer(name, work.num_tokens, (channels,)) for name in names))

    stream = tokens_of(width.hidden_size)
    return Declaration(
        (b, c, x, conv, out),
        operations,
        inputs=(stream,),
        output=stream,
        cache=(CacheEntry("gated", (channels,), Bound("window", num_before)),),
        live=lambda work: buffers(work, "gated", "convolved", "accumulated"),
        saved=lambda work: buffers(work, "b", "x", "convolved", "c", "product"),
    )
