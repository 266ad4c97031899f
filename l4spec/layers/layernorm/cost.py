"""Cost of a LayerNorm: a weight and a bias per channel, one read and one write per element."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import Buffer, Declaration, Dim, Elementwise, Operation, Parameter, Work, tokens_of
from l4spec.layers.layernorm.spec import LayerNormSpec


def declare(spec: LayerNormSpec, width: Width) -> Declaration:
    """A weight and, with `bias`, a bias [hidden]; norms count no FLOPs by convention."""
    hidden = Dim("hidden", width.hidden_size)
    weight = Parameter("weight", (hidden,), "norm", "norm")
    bias = (Parameter("bias", (hidden,), "norm", "bias"),) if spec.bias else ()

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Elementwise("normalise", work.num_tokens * width.hidden_size),)  # (x - mean) / std * weight + bias

    def output(work: Work) -> tuple[Buffer, ...]:
        return (Buffer("output", work.num_tokens, (hidden,)),)

    stream = tokens_of(width.hidden_size)
    return Declaration((weight, *bias), operations, inputs=(stream,), output=stream, live=output, saved=output)
