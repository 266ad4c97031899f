"""Schema of the gated short convolution."""

from typing import Annotated, Literal

from pydantic import Field

from l4spec.layers.base import LayerSpec


class ShortConvSpec(LayerSpec):
    """Gated short convolution W_out (c * conv(b * x)) instead of attention (LFM2, arXiv:2511.23404)."""

    kind: Literal["short_conv"]
    kernel_size: Annotated[int, Field(ge=2, le=1024)] = 3
    """Tokens that the convolution sees, the newest one included."""
