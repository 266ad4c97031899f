"""Cost of a residual addition: traffic, and where it is scaled one stored number."""

from l4spec.layers.add.spec import AddSpec
from l4spec.layers.base import Width
from l4spec.layers.declaration import Buffer, Declaration, Dim, Elementwise, Operation, Parameter, Work, tokens_of


def declare(spec: AddSpec, width: Width) -> Declaration:
    """No parameters but the factor of a scaled sum, a buffer [1]; additions count no FLOPs by convention."""
    one = Dim("one", 1)
    factor = (Parameter("factor", (one,), "norm", "other", buffer=True, start=1.0),) if spec.scaled else ()

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Elementwise("add", work.num_tokens * width.hidden_size, reads=spec.num_inputs),)  # x + y

    stream = tokens_of(width.hidden_size)
    return Declaration(
        factor,
        operations,
        inputs=(stream,) * spec.num_inputs,
        output=stream,
        saved=lambda work: tuple(Buffer("factor", 0, parameter.dims) for parameter in factor),  # of no token
    )
