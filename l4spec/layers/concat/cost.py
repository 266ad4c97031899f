"""Cost of a concatenation: traffic only."""

from l4spec.layers.base import Width
from l4spec.layers.concat.spec import ConcatSpec
from l4spec.layers.declaration import Declaration, Elementwise, Operation, Work, tokens_of


def declare(spec: ConcatSpec, width: Width) -> Declaration:
    """No parameters, no FLOPs: every element is read and written once."""

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Elementwise("copy", work.num_tokens * width.hidden_size * spec.num_inputs),)  # [x, y, …]

    stream = tokens_of(width.hidden_size)
    return Declaration(
        (),
        operations,
        inputs=(stream,) * spec.num_inputs,
        output=tokens_of(width.hidden_size * spec.num_inputs),
    )
