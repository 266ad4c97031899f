"""Cost of an RMSNorm: one weight per channel, one read and one write per element."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import Buffer, Declaration, Dim, Elementwise, Operation, Parameter, Work, tokens_of
from l4spec.layers.rmsnorm.spec import RMSNormSpec


def declare(spec: RMSNormSpec, width: Width) -> Declaration:
    """A weight [hidden]; norms count no FLOPs by convention."""
    hidden = Dim("hidden", width.hidden_size)
    weight = Parameter("weight", (hidden,), "norm", "norm", start=0.0 if spec.unit_offset else 1.0)

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Elementwise("normalise", work.num_tokens * width.hidden_size),)  # x / rms(x) * weight

    def output(work: Work) -> tuple[Buffer, ...]:
        return (Buffer("output", work.num_tokens, (hidden,)),)

    stream = tokens_of(width.hidden_size)
    return Declaration((weight,), operations, inputs=(stream,), output=stream, live=output, saved=output)
