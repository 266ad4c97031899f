"""Cost of the adapter after a vision tower."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import Buffer, Declaration, Dim, Matmul, Operation, Work, linear, tokens_of
from l4spec.layers.pixel_shuffle_mlp.spec import PixelShuffleMLPSpec


def declare(spec: PixelShuffleMLPSpec, width: Width) -> Declaration:
    """fc1 [intermediate, hidden * fold^2] and fc2 [output, intermediate]; its work counts the tokens after folding."""
    folded = Dim("hidden", width.hidden_size * spec.fold**2)
    ffn, out = Dim("ffn", spec.intermediate_size), Dim("adapter", spec.output_size)
    fc1 = linear("fc1", ffn, folded, "vision", bias=spec.bias)
    fc2 = linear("fc2", out, ffn, "vision", bias=spec.bias)

    def operations(work: Work) -> tuple[Operation, ...]:
        return (
            Matmul("fc1", work.num_tokens, fc1[0]),  # folded patches @ W_1.T
            Matmul("fc2", work.num_tokens, fc2[0]),  # gelu(…) @ W_2.T
        )

    def live(work: Work) -> tuple[Buffer, ...]:
        return tuple(Buffer(dim.axis, work.num_tokens, (dim,)) for dim in (folded, ffn, out))

    return Declaration(
        (*fc1, *fc2),
        operations,
        inputs=(tokens_of(width.hidden_size),),
        output=tokens_of(spec.output_size),
        live=live,
        saved=live,
    )
