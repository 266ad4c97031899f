"""Schema of the mixture-of-experts feed-forward layer."""

from math import ceil
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.base import WIDEST, Count, LayerSize, LayerSpec, PositiveFloat, Spec
from l4spec.layers.common.gate_clamp import GateClamp


class TokenNorm(Spec):
    """RMSNorm of a mixture's tokens, with a weight of its own, in fp32."""

    eps: PositiveFloat
    """Added to the mean square."""


class RouterSpec(Spec):
    """Router of tokens to experts: a linear layer gives a logit per expert, top-k are chosen, scores weigh them."""

    score: Literal["sigmoid", "softmax", "sqrt_softplus"]
    """Function of the logits that gives scores; softmax is over all experts, `sqrt_softplus` is DeepSeek-V4's."""
    scales: Literal["input", "output"] = "output"
    """Side of the expert that a score multiplies: its input (Llama 4) or its output."""
    renormalize: bool = False
    """Divide the chosen scores by their sum (Mixtral, Qwen3, DeepSeek-V3)."""
    scaling_factor: PositiveFloat = 1.0
    """Factor on the chosen scores (DeepSeek-V3: 2.5)."""
    num_groups: LayerSize = 1
    """Groups of experts of which only some may be chosen (DeepSeek)."""
    num_limited_groups: LayerSize = 1
    """Groups that a token may choose experts from."""
    group_score: Literal["top2_sum", "max"] = "top2_sum"
    """Score of a group: sum of its two best scores (DeepSeek-V3) or its best one (DeepSeek-V2)."""
    bias: bool = False
    """A trained bias on the logits (gpt-oss)."""
    correction_bias: bool = False
    """A bias per expert added to scores for the choice only (auxiliary-loss-free balancing, DeepSeek-V3)."""
    norm: TokenNorm | None = None
    """Norm of the router's input, which is then divided by sqrt(hidden_size) (Gemma 4)."""
    expert_scale: bool = False
    """A trained factor per expert on the scores with which it is chosen, after `renormalize` (Gemma 4)."""
    by_token: bool = False
    """Experts are looked up by token id, in a table that training leaves as it is; scores still weigh them
    (DeepSeek-V4's first layers)."""


class BalanceSpec(Spec):
    """Load balancing in training; without effect on inference."""

    auxiliary_loss: PositiveFloat | None = None
    """Weight of the load-balancing loss E sum_e f_e P_e of each layer (Switch Transformer, arXiv:2101.03961)."""
    counted_over: Literal["batch", "sequence", "ep_group"] = "batch"
    """Scope of the loss: the microbatch over all ranks, each sequence, or the ranks that share the experts."""
    z_loss: PositiveFloat | None = None
    """Weight of the mean squared log-sum-exp of the router's logits (ST-MoE, arXiv:2202.08906)."""
    bias_update: PositiveFloat | None = None
    """Size of the correction bias's update after each step, mean-centred (DeepSeek-V3: 0.001)."""
    expert_choice: PositiveFloat | None = None
    """In training each expert takes the best factor * tokens * top-k / experts tokens of a microbatch over all ranks.

    Without training, tokens choose (arXiv:2202.09368; Llama 4's reference code has such a capacity_factor, 1.0).
    """


class MoESpec(LayerSpec):
    """Mixture of experts: each token goes through a few of `num_experts`, and through all shared experts."""

    kind: Literal["moe"]
    num_experts: LayerSize
    """Routed experts."""
    num_experts_per_token: LayerSize
    """Routed experts that each token uses (top-k)."""
    intermediate_size: LayerSize
    """Width of one routed expert."""
    num_shared_experts: Annotated[Count, Field(le=WIDEST)] = 0
    """Experts that every token uses."""
    shared_intermediate_size: LayerSize | None = None
    """Width of one shared expert; as wide as a routed one when left out."""
    shared_gate: bool = False
    """Multiply the shared expert's output by sigmoid(x w) (Qwen2-MoE)."""
    activation: Literal["silu", "gelu_tanh", "relu2"] = "silu"
    """Activation of the gate, or without gates of the first projection (Nemotron 3: relu2)."""
    gated: bool = True
    """Gated experts, down(act(gate(x)) * up(x)); if false, down(act(up(x))) (Nemotron 3)."""
    latent_size: LayerSize | None = None
    """Width that tokens are narrowed to before routed experts, and widened from after them (Nemotron 3 Super)."""
    clamp: GateClamp | None = None
    """Clamps of gate and product in every expert, the shared ones too (gpt-oss, DeepSeek-V4); needs silu."""
    expert_bias: bool = False
    """Biases on the three projections of each routed expert (gpt-oss)."""
    router: RouterSpec
    """Router of tokens to experts."""
    input_norm: TokenNorm | None = None
    """Norm of the experts' input inside the layer, instead of the block's; the router reads the stream (Gemma 4)."""
    capacity_factor: PositiveFloat | None = None
    """Limit of an expert, capacity_factor * tokens * top-k / experts; tokens beyond it are dropped. Null: none are."""
    balance: BalanceSpec | None = None
    """Load balancing in training; null: none."""

    @property
    def norms_input(self) -> bool:
        """True if experts read tokens through a norm of the layer's own."""
        return self.input_norm is not None

    @property
    def shared_size(self) -> int:
        """Width of all shared experts together, computed as one layer; 0 without any."""
        return self.num_shared_experts * (self.shared_intermediate_size or self.intermediate_size)

    @property
    def num_trained_choices(self) -> float:
        """Experts that a token goes through in training, on average."""
        factor = None if self.balance is None else self.balance.expert_choice
        return self.num_experts_per_token * (factor or 1)

    def num_taken(self, tokens: int) -> int | None:
        """Number of tokens, out of `tokens`, that each expert takes in training; None if tokens choose."""
        if self.balance is None or self.balance.expert_choice is None:
            return None
        return ceil(self.balance.expert_choice * tokens * self.num_experts_per_token / self.num_experts)

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
        if self.router.by_token and (groups > 1 or self.router.correction_bias):
            raise ValueError("router.by_token looks experts up: leave out num_groups and correction_bias")
        if groups > 1 and self.router.group_score == "top2_sum" and self.num_experts // groups < 2:
            raise ValueError("group_score top2_sum needs at least two experts a group")
        if self.clamp is not None and self.activation != "silu":
            raise ValueError(f"clamp is defined for activation silu, found {self.activation}")
        if self.clamp is not None and not self.gated:
            raise ValueError("clamp is defined for gated experts: set gated to true")
        if not self.num_shared_experts and (self.shared_gate or self.shared_intermediate_size is not None):
            raise ValueError("shared_gate and shared_intermediate_size need num_shared_experts of at least 1")
        return self

    @model_validator(mode="after")
    def _balancing_possible(self) -> Self:
        balance = self.balance
        if balance is None:
            return self
        if balance.bias_update is not None and not self.router.correction_bias:
            raise ValueError("balance.bias_update moves the correction bias: set router.correction_bias to true")
        if balance.expert_choice is not None:
            others = {
                "capacity_factor": self.capacity_factor is not None,
                "router.correction_bias": self.router.correction_bias,
                "router.num_groups above 1": self.router.num_groups > 1,
                "router.by_token": self.router.by_token,
                "balance.auxiliary_loss": balance.auxiliary_loss is not None,
            }
            named = [name for name, is_set in others.items() if is_set]
            if named:
                raise ValueError(f"experts that choose tokens are balanced already: leave out {', '.join(named)}")
            if balance.expert_choice * self.num_experts_per_token > self.num_experts:
                raise ValueError("balance.expert_choice asks each expert to take more tokens than there are")
        if balance.counted_over != "batch" and balance.auxiliary_loss is None:
            raise ValueError("balance.counted_over needs balance.auxiliary_loss")
        return self

    def narrowed(self, tp: int) -> Self:
        """Every expert's width divided, and all shared experts' together; the router is whole."""
        update: dict[str, int] = {"intermediate_size": self.intermediate_size // tp}
        if self.num_shared_experts:
            update |= {"num_shared_experts": 1, "shared_intermediate_size": self.shared_size // tp}
        return self.model_copy(update=update)
