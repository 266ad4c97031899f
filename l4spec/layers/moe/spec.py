"""Schema of the mixture-of-experts feed-forward layer."""

from typing import Literal, Self

from pydantic import model_validator

from l4spec.layers.base import Count, LayerSpec, PositiveFloat, Size, Spec


class RouterSpec(Spec):
    """How tokens choose experts: a linear layer gives a logit per expert, top-k are chosen, scores weigh them."""

    score: Literal["sigmoid", "softmax"]
    """What turns logits into scores; softmax runs over all experts."""
    scales: Literal["input", "output"] = "output"
    """Whether a score multiplies the expert's input (Llama 4) or its output."""
    renormalize: bool = False
    """Divide the chosen scores by their sum (Mixtral, Qwen3, DeepSeek-V3)."""
    scaling_factor: PositiveFloat = 1.0
    """Factor on the chosen scores (DeepSeek-V3: 2.5)."""
    num_groups: Size = 1
    """Groups of experts of which only some may be chosen (DeepSeek)."""
    num_limited_groups: Size = 1
    """Groups that a token may choose experts from."""
    group_score: Literal["top2_sum", "max"] = "top2_sum"
    """A group's worth: sum of its two best scores (DeepSeek-V3) or its best one (DeepSeek-V2)."""
    correction_bias: bool = False
    """A bias per expert added to scores for the choice only (auxiliary-loss-free balancing, DeepSeek-V3)."""


class MoESpec(LayerSpec):
    """Mixture of SwiGLU experts: each token goes through a few of `num_experts`, and through all shared experts."""

    kind: Literal["moe"]
    num_experts: Size
    """Routed experts."""
    num_experts_per_token: Size
    """Routed experts that each token uses (top-k)."""
    intermediate_size: Size
    """Width of one routed expert."""
    num_shared_experts: Count = 0
    """Experts that every token uses."""
    shared_intermediate_size: Size | None = None
    """Width of one shared expert; as wide as a routed one when left out."""
    shared_gate: bool = False
    """Multiply the shared expert's output by sigmoid(x w) (Qwen2-MoE)."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """Activation of the gate."""
    router: RouterSpec
    """How tokens choose experts."""
    capacity_factor: PositiveFloat | None = None
    """Tokens beyond capacity_factor * tokens * top-k / experts are dropped by an expert; null: none is dropped."""

    @property
    def shared_size(self) -> int:
        """Width of all shared experts together, computed as one layer; 0 without any."""
        return self.num_shared_experts * (self.shared_intermediate_size or self.intermediate_size)

    @model_validator(mode="after")
    def _routing_possible(self) -> Self:
        groups, limited = self.router.num_groups, self.router.num_limited_groups
        if self.num_experts_per_token > self.num_experts:
            raise ValueError(
                f"num_experts_per_token ({self.num_experts_per_token}) must not exceed num_experts ({self.num_experts})"
            )
        if self.num_experts % groups or limited > groups:
            raise ValueError(
                f"router.num_groups ({groups}) must divide num_experts ({self.num_experts}) "
                f"and be at least num_limited_groups ({limited})"
            )
        if self.num_experts_per_token > limited * (self.num_experts // groups):
            raise ValueError("num_experts_per_token exceeds the experts in the groups a token may choose from")
        if groups > 1 and self.router.group_score == "top2_sum" and self.num_experts // groups < 2:
            raise ValueError("group_score top2_sum needs at least two experts a group")
        if not self.num_shared_experts and (self.shared_gate or self.shared_intermediate_size is not None):
            raise ValueError("shared_gate and shared_intermediate_size need num_shared_experts of at least 1")
        return self

    def narrowed(self, tp: int) -> Self:
        """Every expert's width divided, and all shared experts' together; the router is whole."""
        update: dict[str, int] = {"intermediate_size": self.intermediate_size // tp}
        if self.num_shared_experts:
            update |= {"num_shared_experts": 1, "shared_intermediate_size": self.shared_size // tp}
        return self.model_copy(update=update)
