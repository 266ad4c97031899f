"""Schema of Kimi Delta Attention."""

from typing import Annotated, Literal, Self

from pydantic import Field

from l4spec.layers.base import LayerSize, LayerSpec, PositiveFloat, Shrink


class KDASpec(LayerSpec):
    """Kimi Delta Attention: the gated delta rule with a decay per channel of a key (arXiv:2510.26692; Kimi Linear)."""

    kind: Literal["kda"]
    num_heads: LayerSize
    """Heads, each with a query, a key, a value and a state of its own."""
    head_dim: LayerSize
    """Width of a query, a key and a value, rows and columns of a state, and rank of both gates."""
    conv_kernel_size: Annotated[int, Field(ge=2, le=1024)] = 4
    """Kernel size of the causal convolutions of queries, keys and values, in tokens."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the mean square of a head's output."""

    @property
    def heads_width(self) -> int:
        """Channels of all heads together."""
        return self.num_heads * self.head_dim

    def narrowed(self, tp: int) -> Self:
        """Heads divided, and their states with them; every rank has the narrow halves of both gates."""
        return self.model_copy(update={"num_heads": self.num_heads // tp})

    def miniature(self, shrink: Shrink) -> Self:
        """Fewer and narrower heads."""
        heads = shrink.heads(self.num_heads)
        head_dim = shrink.per_head(self.head_dim, self.num_heads, heads)
        return self.model_copy(update={"num_heads": heads, "head_dim": head_dim})
