"""Schema of multi-head latent attention."""

from typing import Literal, Self

from pydantic import model_validator

from l4spec.layers.attention.masks import GridWindowMask, Mask
from l4spec.layers.attention.positions import Position, Rope, Rope2d
from l4spec.layers.base import LayerSize, LayerSpec, PositiveFloat


class LatentSpec(LayerSpec):
    """Sizes of attention whose keys and values come from a cached latent."""

    num_heads: LayerSize
    """Heads; every head has keys and values of its own, computed from the latent."""
    q_lora_rank: LayerSize | None
    """Rank of the query's low-rank projection; null for a full one."""
    kv_lora_rank: LayerSize
    """Width of the latent that is cached."""
    qk_nope_head_dim: LayerSize
    """Part of a query/key head without rotation."""
    qk_rope_head_dim: LayerSize
    """Rotated part of a query/key head; its key part is shared by all heads and cached."""
    v_head_dim: LayerSize
    """Width of a value head."""
    mask: Mask
    """Mask of the keys that a query attends to."""
    position: Position
    """Rotary position encoding of the rope part."""
    norm_eps: PositiveFloat
    """eps of the RMSNorms on the latents."""
    bias: bool = False
    """Biases on the two down-projections and the output projection."""

    @model_validator(mode="after")
    def _rope_even(self) -> Self:
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim must be even, found {self.qk_rope_head_dim}")
        if isinstance(self.position, Rope2d):
            raise ValueError("mla takes position rope or none, not rope_2d")
        if isinstance(self.mask, GridWindowMask):
            raise ValueError("mla takes no mask grid_window: use gqa")
        if isinstance(self.position, Rope) and self.position.rotary_dim not in (None, self.qk_rope_head_dim):
            raise ValueError("mla rotates qk_rope_head_dim elements: leave position.rotary_dim out")
        if isinstance(self.position, Rope) and self.position.sections is not None:
            raise ValueError("mla turns by positions alone: leave position.sections out")
        return self

    def narrowed(self, tp: int) -> Self:
        """Heads divided; every rank has the whole latent."""
        return self.model_copy(update={"num_heads": self.num_heads // tp})


class MLASpec(LatentSpec):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values come from a cached latent."""

    kind: Literal["mla"]
