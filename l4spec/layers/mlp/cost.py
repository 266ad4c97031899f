"""What a plain two-layer feed-forward network costs."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import Buffer, Declaration, Dim, Elementwise, Matmul, Operation, Work, linear, tokens_of
from l4spec.layers.mlp.spec import MLPSpec


def declare(spec: MLPSpec, width: Width) -> Declaration:
    """up_proj [ffn, hidden], down_proj [hidden, ffn]: 4 * hidden * ffn FLOPs per token."""
    hidden, ffn = Dim("hidden", width.hidden_size), Dim("ffn", spec.intermediate_size)
    up = linear("up_proj", ffn, hidden, "dense_ffn", bias=spec.bias)
    down = linear("down_proj", hidden, ffn, "dense_ffn", bias=spec.bias)

    def operations(work: Work) -> tuple[Operation, ...]:
        return (
            Matmul("up_proj", work.num_tokens, up[0]),  # x @ W_up.T
            Elementwise("activate", work.num_tokens * ffn.size),  # gelu(up)
            Matmul("down_proj", work.num_tokens, down[0]),  # activated @ W_down.T
        )

    def live(work: Work) -> tuple[Buffer, ...]:
        widths = {"normed_input": hidden, "up": ffn, "activated": ffn}
        return tuple(Buffer(name, work.num_tokens, (dim,)) for name, dim in widths.items())

    stream = tokens_of(width.hidden_size)
    return Declaration(
        (*up, *down), operations, inputs=(stream,), output=stream, live=live, saved=live, activation=spec.activation
    )
