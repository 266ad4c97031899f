"""The torch module of early fusion."""

from torch import Tensor

from l4spec.layers.base import Width
from l4spec.layers.common.modules import Context, LayerModule
from l4spec.layers.merge.spec import MergeSpec


class Merge(LayerModule):
    """Puts image vectors, in order, where the text has image placeholders; without an image the text passes."""

    def __init__(self, spec: MergeSpec, width: Width) -> None:
        super().__init__()

    def forward(self, text: Tensor, image: Tensor | None = None, *, context: Context) -> Tensor:
        """Text [batch, tokens, hidden] and image [tiles, image_tokens, hidden] to [batch, tokens, hidden]."""
        if image is None:
            return text
        assert context.image_mask is not None, "an image needs the places of its tokens"
        return text.masked_scatter(context.image_mask[..., None], image.to(text.dtype))
