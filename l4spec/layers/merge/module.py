"""The torch module of early fusion."""

from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule
from l4spec.layers.merge.spec import MergeSpec


class Merge(LayerModule):
    """Puts image vectors, in order, where the text has image placeholders; without an image the text passes.

    Vectors for a block, those with an index above 0, are added to the text's own.
    """

    def __init__(self, spec: MergeSpec, width: Width) -> None:
        super().__init__()
        self.index = spec.index

    def forward(self, text: Tensor, image: Tensor | None = None, *, context: Context) -> Tensor:
        """Text [batch, tokens, hidden] and image [tiles, image_tokens, vectors * hidden] to [batch, tokens, hidden]."""
        if image is None:
            return text
        assert context.image_mask is not None, "an image needs the places of its tokens"
        places = context.image_mask[..., None]
        width = text.shape[-1]
        image = image[..., self.index * width : (self.index + 1) * width]
        if not self.index:
            return text.masked_scatter(places, image.to(text.dtype))
        return text + text.new_zeros(text.shape).masked_scatter_(places, image.to(text.dtype))
