"""What a residual addition costs: traffic only."""

from l4spec.layers.add.spec import AddSpec
from l4spec.layers.base import Width
from l4spec.layers.declaration import Declaration, Elementwise, Operation, Work, tokens_of


def declare(spec: AddSpec, width: Width) -> Declaration:
    """No parameters; additions count no FLOPs by convention."""

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Elementwise("add", work.num_tokens * width.hidden_size, reads=spec.num_inputs),)  # x + y

    stream = tokens_of(width.hidden_size)
    return Declaration((), operations, inputs=(stream,) * spec.num_inputs, output=stream)
