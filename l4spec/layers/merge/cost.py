"""Cost of early fusion: traffic only."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import Buffer, Declaration, Dim, Elementwise, Operation, Work, tokens_of
from l4spec.layers.merge.spec import MergeSpec


def declare(spec: MergeSpec, width: Width) -> Declaration:
    """No parameters, no FLOPs; first input the text stream, second the vectors of image tokens."""

    def operations(work: Work) -> tuple[Operation, ...]:
        reads = 2 if spec.index else 1
        return (Elementwise("place", work.num_tokens * width.hidden_size, reads=reads),)  # text[placeholder] = image

    def live(work: Work) -> tuple[Buffer, ...]:
        hidden = (Dim("hidden", width.hidden_size),)
        return tuple(Buffer(name, work.num_tokens, hidden) for name in (("placed", "output") if spec.index else ()))

    stream = tokens_of(width.hidden_size)
    vectors = ("tiles", "image_tokens", spec.num_vectors * width.hidden_size)
    return Declaration((), operations, inputs=(stream, vectors), output=stream, live=live)
