"""What early fusion costs: traffic only."""

from l4spec.layers.base import Width
from l4spec.layers.declaration import Declaration, Elementwise, Operation, Work, tokens_of
from l4spec.layers.merge.spec import MergeSpec


def declare(spec: MergeSpec, width: Width) -> Declaration:
    """No parameters, no FLOPs; first input the text stream, second the projected image tokens."""

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Elementwise("place", work.num_tokens * width.hidden_size),)  # text[placeholder] = image

    stream = tokens_of(width.hidden_size)
    return Declaration((), operations, inputs=(stream, ("tiles", "image_tokens", width.hidden_size)), output=stream)
