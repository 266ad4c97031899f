"""Cost of a single linear layer."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import Buffer, Declaration, Dim, Matmul, Operation, Work, linear, tokens_of
from l4spec.layers.linear.spec import LinearSpec


def declare(spec: LinearSpec, width: Width) -> Declaration:
    """A weight [out, in], and a bias [out] if declared: 2 * in * out FLOPs per token."""
    into = Dim("adapter", width.hidden_size)
    parameters = linear("proj", Dim("projected", spec.output_size), into, "projector", bias=spec.bias)

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Matmul("proj", work.num_tokens, parameters[0]),)  # x @ W.T

    return Declaration(
        parameters,
        operations,
        inputs=(tokens_of(width.hidden_size),),
        output=tokens_of(spec.output_size),
        saved=lambda work: (Buffer("input", work.num_tokens, (into,)),),
    )
