"""Schema of the gated delta net."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.base import LayerSize, LayerSpec, PositiveFloat, Shrink


class GatedDeltaNetSpec(LayerSpec):
    """Linear attention by the gated delta rule, a state that does not grow (arXiv:2412.06464; Qwen3-Next, Qwen3.5)."""

    kind: Literal["gated_delta_net"]
    num_key_heads: LayerSize
    """Heads of queries and keys."""
    num_value_heads: LayerSize
    """Heads of values, each with a state; a multiple of num_key_heads, neighbours share a query and a key."""
    key_head_dim: LayerSize
    """Width of a query and of a key, and rows of a state."""
    value_head_dim: LayerSize
    """Width of a value, and columns of a state."""
    conv_kernel_size: Annotated[int, Field(ge=2, le=1024)] = 4
    """Kernel size of the causal convolution of queries, keys and values, in tokens."""
    norm_eps: PositiveFloat = 1e-6
    """Added to the mean square of a head's output."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.num_value_heads % self.num_key_heads:
            raise ValueError(
                f"num_value_heads ({self.num_value_heads}) must be a multiple of num_key_heads ({self.num_key_heads})"
            )
        return self

    @property
    def conv_width(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.num_key_heads * self.key_head_dim + self.num_value_heads * self.value_head_dim

    def narrowed(self, tp: int) -> Self:
        """Heads of keys and of values divided, and their states with them."""
        update = {"num_key_heads": self.num_key_heads // tp, "num_value_heads": self.num_value_heads // tp}
        return self.model_copy(update=update)

    def miniature(self, shrink: Shrink) -> Self:
        """Fewer and narrower heads, as many values to a key as before."""
        keys = shrink.heads(self.num_key_heads)
        return self.model_copy(
            update={
                "num_key_heads": keys,
                "num_value_heads": self.num_value_heads // self.num_key_heads * keys,
                "key_head_dim": shrink.per_head(self.key_head_dim, self.num_key_heads, keys),
                "value_head_dim": shrink.per_head(self.value_head_dim, self.num_key_heads, keys),
            }
        )
