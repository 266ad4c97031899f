"""Schema of grouped-query attention; MHA and MQA are its ends."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.attention.masks import GridWindowMask, Mask
from l4spec.layers.attention.positions import Position, Rope, Rope2d
from l4spec.layers.base import LayerSize, LayerSpec, PositiveFloat, Spec


class L2Norm(Spec):
    """Weightless RMS of each query and key head after the rotation, in fp32 (Llama 4 Scout)."""

    kind: Literal["l2"]
    eps: PositiveFloat = 1e-5
    """Added to the mean square."""


class RMSQKNorm(Spec):
    """RMSNorm with a weight on queries and keys, before the rotation (Qwen3)."""

    kind: Literal["rmsnorm"]
    eps: PositiveFloat = 1e-6
    """Added to the mean square."""
    over: Literal["head", "width"] = "head"
    """Vector that is normed: each head (Qwen3), or all heads of a token as one (OLMo 2, MiniMax-M2)."""
    unit_offset: bool = False
    """The factor is 1 + weight, so that a weight of zero changes nothing (Gemma 3, Qwen3-Next)."""


class ValueNorm(Spec):
    """Weightless RMSNorm of each value head, in fp32 (Gemma 4)."""

    eps: PositiveFloat = 1e-6
    """Added to the mean square."""


QKNorm = Annotated[L2Norm | RMSQKNorm, Field(discriminator="kind")]


class Temperature(Spec):
    """Query scale log(floor((position + 1) / floor_scale) + 1) * attn_scale + 1, position from 0 (Llama 4)."""

    floor_scale: PositiveFloat
    """Tokens per step of the scale."""
    attn_scale: PositiveFloat
    """Height of the logarithm."""


class GQASpec(LayerSpec):
    """Grouped-query attention (arXiv:2305.13245): `num_heads` query heads share `num_kv_heads` key/value heads."""

    kind: Literal["gqa"]
    num_heads: LayerSize
    """Query heads."""
    num_kv_heads: LayerSize
    """Key/value heads: equal to num_heads for MHA, 1 for MQA."""
    head_dim: LayerSize
    """Width of a head."""
    v_head_dim: LayerSize | None = None
    """Width of a value head; head_dim when left out (MiMo-V2: narrower)."""
    mask: Mask
    """Mask of the keys that a query attends to."""
    position: Position
    """Position encoding of queries and keys."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections."""
    output_bias: bool = False
    """Bias on the output projection."""
    qk_norm: QKNorm | None = None
    """Norm of each query and key head."""
    temperature: Temperature | None = None
    """Growth of the query scale with the position."""
    logit_softcap: PositiveFloat | None = None
    """Attention scores become cap * tanh(score / cap) (Gemma 2)."""
    scale: PositiveFloat | None = None
    """Factor on the scores; head_dim ** -0.5 when left out."""
    sinks: bool = False
    """Add a learned logit per query head to each softmax, without a value: weights may sum to less than 1 (gpt-oss)."""
    output_gate: Literal["elementwise", "headwise"] | None = None
    """Multiply the heads' output by sigmoid(x W), with a factor per element (Qwen3-Next) or per head (Step-3.7)."""

    value_scale: PositiveFloat | None = None
    """Factor on values (MiMo-V2: 0.707)."""
    values_from_keys: bool = False
    """Use the output of the key projection, before norm and rotation, as values; there is no v_proj (Gemma 4)."""
    value_norm: ValueNorm | None = None
    """Norm of each value head."""

    @property
    def value_dim(self) -> int:
        """Width of a value head."""
        return self.v_head_dim or self.head_dim

    @property
    def is_fused(self) -> bool:
        """True if a fused kernel computes the attention; capped scores and sinks need the scores themselves."""
        return self.logit_softcap is None and not self.sinks

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.values_from_keys and self.value_dim != self.head_dim:
            raise ValueError(f"values from keys are as wide as keys ({self.head_dim}), found {self.value_dim}")
        if isinstance(self.position, Rope):
            rotary_dim = self.position.rotary_dim or self.head_dim
            if rotary_dim > self.head_dim or rotary_dim % 2:
                raise ValueError(f"the rotated part ({rotary_dim}) must be even and at most head_dim ({self.head_dim})")
            if (problem := self.position.sections_problem(self.head_dim)) is not None:
                raise ValueError(problem)
        if isinstance(self.mask, GridWindowMask) and not (self.is_fused and self.value_dim == self.head_dim):
            raise ValueError("a grid_window mask takes no logit_softcap, sinks or v_head_dim")
        if isinstance(self.position, Rope2d) and self.head_dim % 4:
            raise ValueError(f"2-D rope needs head_dim divisible by 4, found {self.head_dim}")
        return self

    def narrowed(self, tp: int) -> Self:
        """Query heads and KV heads divided; with fewer KV heads than ranks each rank has one, as its neighbours do."""
        return self.model_copy(
            update={"num_heads": self.num_heads // tp, "num_kv_heads": max(1, self.num_kv_heads // tp)}
        )
