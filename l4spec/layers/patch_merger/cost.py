"""Cost of a patch merger."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import (
    Buffer,
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
from l4spec.layers.patch_merger.spec import PatchMergerSpec


def declare(spec: PatchMergerSpec, width: Width) -> Declaration:
    """A norm and fc [output, hidden * fold^2]; its work counts the tokens after folding. Every rank has it whole."""
    folded, out = Dim("hidden", width.hidden_size * spec.fold**2), Dim("adapter", spec.output_size)
    normed = folded if spec.norms == "folded" else Dim("hidden", width.hidden_size)
    weight = Parameter("norm.weight", (normed,), "vision", "norm")
    bias = (Parameter("norm.bias", (normed,), "vision", "bias"),) if spec.norm == "layernorm" else ()
    fc = linear("fc", out, folded, "vision", bias=spec.bias)

    def operations(work: Work) -> tuple[Operation, ...]:
        return (
            Elementwise("normalise", work.num_tokens * folded.size),  # norm(patches)
            Matmul("fc", work.num_tokens, fc[0]),  # folded patches @ W.T
        )

    def live(work: Work) -> tuple[Buffer, ...]:
        return tuple(
            Buffer(name, work.num_tokens, (dim,)) for name, dim in (("normed", folded), ("folded", folded), ("fc", out))
        )

    return Declaration(
        (weight, *bias, *fc),
        operations,
        inputs=(tokens_of(width.hidden_size),),
        output=tokens_of(spec.output_size),
        live=live,
        saved=live,
    )
