"""Schema of Mamba-2."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.base import LayerSize, LayerSpec, PositiveFloat, Shrink


class Mamba2Spec(LayerSpec):
    """Selective state space in its dual form, a state that does not grow (arXiv:2405.21060; Nemotron-H)."""

    kind: Literal["mamba2"]
    num_heads: LayerSize
    """Heads, each with a state."""
    head_dim: LayerSize
    """Width of a head, and columns of a state."""
    state_size: LayerSize
    """Rows of a state."""
    num_groups: LayerSize = 1
    """Groups of heads that share the vectors that write (B) and read (C) the state, and a norm."""
    conv_kernel_size: Annotated[int, Field(ge=2, le=1024)] = 4
    """Kernel size of the causal convolution, in tokens."""
    conv_bias: bool = True
    """A bias on the convolution."""
    bias: bool = False
    """Biases on all projections."""
    min_step: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Least step size of a token, softplus(x W + b) (Nemotron-H: 0.001)."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the mean square of the output of a group of heads."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.num_heads % self.num_groups:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_groups ({self.num_groups})")
        return self

    @property
    def inner_size(self) -> int:
        """Width of all heads."""
        return self.num_heads * self.head_dim

    @property
    def conv_width(self) -> int:
        """Channels of the convolution: heads, and B and C of each group."""
        return self.inner_size + 2 * self.num_groups * self.state_size

    def narrowed(self, tp: int) -> Self:
        """Groups divided, with their heads and states."""
        return self.model_copy(update={"num_heads": self.num_heads // tp, "num_groups": self.num_groups // tp})

    def miniature(self, shrink: Shrink) -> Self:
        """Fewer and narrower heads in as many groups, or as many as there are heads, and smaller states."""
        per_group = shrink.heads(self.num_heads // self.num_groups)
        groups = shrink.heads(self.num_groups)
        heads = per_group * groups
        return self.model_copy(
            update={
                "num_groups": groups,
                "num_heads": heads,
                "head_dim": shrink.per_head(self.head_dim, self.num_heads, heads),
                "state_size": shrink.per_head(self.state_size, self.num_heads, heads),
            }
        )
