"""Cost of a patch embedding."""

from math import prod

from l4spec.layers.base import Width
from l4spec.layers.declaration import Declaration, Dim, Matmul, Operation, Parameter, Work, linear, tokens_of
from l4spec.layers.patch_embedding.spec import PatchEmbeddingSpec


def declare(spec: PatchEmbeddingSpec, width: Width) -> Declaration:
    """A projection [hidden, channels * frames * patch^2] over grid^2 patches per tile, and a class token [hidden].

    Here a sequence is a tile: `work.num_sequences` tiles are embedded.
    """
    hidden = Dim("hidden", width.hidden_size)
    pixels = Dim("pixels", prod(spec.kernel))
    weight = linear("proj", hidden, pixels, "vision", bias=spec.bias)
    class_token = (Parameter("class_token", (hidden,), "vision", "other"),) if spec.class_token != "none" else ()

    def operations(work: Work) -> tuple[Operation, ...]:
        return (Matmul("proj", work.num_sequences * spec.grid**2, weight[0], leaf=True),)  # patches @ W.T

    image = ("tiles", spec.num_channels, spec.image_size, spec.image_size)
    return Declaration((*weight, *class_token), operations, inputs=(image,), output=tokens_of(width.hidden_size))
