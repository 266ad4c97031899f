"""Cost of learned absolute positions: a table and an addition."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import Buffer, Declaration, Dim, Elementwise, Operation, Parameter, Work, tokens_of
from l4spec.layers.learned_position.spec import LearnedPositionSpec


def declare(spec: LearnedPositionSpec, width: Width) -> Declaration:
    """A table [positions, hidden]; the addition counts no FLOPs by convention."""
    dims = (Dim("positions", spec.num_positions), Dim("hidden", width.hidden_size))
    table = Parameter("weight", dims, "position", "embedding")

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Elementwise("add", work.num_tokens * width.hidden_size, reads=2),)  # x + weight[position]

    def live(work: Work) -> tuple[Buffer, ...]:
        if not spec.interpolated:
            return ()
        return (Buffer("laid_over", work.num_queries, dims[1:]), Buffer("output", work.num_tokens, dims[1:]))

    stream = tokens_of(width.hidden_size)
    return Declaration((table,), operations, inputs=(stream,), output=stream, live=live)
