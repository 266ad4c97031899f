"""What a mixture of experts costs: all experts in memory, a few in compute."""

from l4spec.layers.base import Width
from l4spec.layers.common.gated import gated_live, gated_operations, gated_parameters, gated_saved
from l4spec.layers.declaration import (
    Buffer,
    Declaration,
    Dim,
    Elementwise,
    Matmul,
    Operation,
    Parameter,
    RoutedExperts,
    Work,
    linear,
    tokens_of,
)
from l4spec.layers.moe.spec import MoESpec


def declare(spec: MoESpec, width: Width) -> Declaration:
    """Router [experts, hidden]; stacked gate_proj, up_proj [experts, ffn, hidden], down_proj [experts, hidden, ffn].

    A token's FLOPs are those of its `num_experts_per_token` experts, the shared ones and the router; with a capacity,
    the bound that no token is dropped. Experts that choose tokens
    in training count those they take. Choosing and scattering tokens counts no FLOPs by convention.
    """
    hidden = Dim("hidden", width.hidden_size)
    expert_ffn, shared_ffn = Dim("expert_ffn", spec.intermediate_size), Dim("ffn", max(spec.shared_size, 1))
    router = _router(spec, hidden)
    experts = _experts(spec, hidden, expert_ffn)
    shared = gated_parameters("shared_expert.", shared_ffn, hidden, "shared_expert") if spec.num_shared_experts else ()
    shared_gate = _shared_gate(hidden) if spec.shared_gate else ()
    clamped = spec.clamp is not None

    def operations(work: Work) -> tuple[Operation, ...]:
        rows = _routed_rows(spec, work)
        return (
            Matmul("router", work.num_tokens, router[0]),  # x @ W_router.T
            Elementwise("dispatch", rows * hidden.size),  # tokens sorted by expert
            *gated_operations(rows, tuple(p for p in experts if p.role == "expert"), expert_ffn.size),
            Elementwise("combine", rows * hidden.size),  # rows summed by token
            *(gated_operations(work.num_tokens, shared, shared_ffn.size) if shared else ()),
            *(Matmul("shared_expert_gate", work.num_tokens, gate) for gate in shared_gate),  # sigmoid(x w)
        )

    def live(work: Work) -> tuple[Buffer, ...]:
        rows = work.num_tokens * spec.num_experts_per_token
        output = Buffer("combined", work.num_tokens, (hidden,))
        return (*gated_live(rows, expert_ffn, hidden), output, Buffer("expert_output", rows, (hidden,)))

    def saved(work: Work) -> tuple[Buffer, ...]:
        rows = _routed_rows(spec, work)
        of_shared = gated_saved(work.num_tokens, shared_ffn, hidden, clamped=clamped) if shared else ()
        logits = Buffer("router_logits", work.num_tokens, (Dim("experts", spec.num_experts),), bytes_per_element=4)
        return (*gated_saved(rows, expert_ffn, hidden, clamped=clamped), *of_shared, logits)

    stream = tokens_of(width.hidden_size)
    parameters = (*router, *experts, *shared, *shared_gate)
    return Declaration(
        parameters,
        operations,
        inputs=(stream,),
        output=stream,
        live=live,
        saved=saved,
        routed=_routing(spec),
        activation=spec.activation,
    )


def _routed_rows(spec: MoESpec, work: Work) -> int:
    """(token, expert) pairs: top-k per token, or in training what experts that choose tokens take."""
    taken = spec.num_taken(work.num_tokens) if work.phase == "train" else None
    return work.num_tokens * spec.num_experts_per_token if taken is None else spec.num_experts * taken


def _routing(spec: MoESpec) -> RoutedExperts:
    balance = spec.balance
    has_loss = balance is not None and balance.auxiliary_loss is not None
    return RoutedExperts(
        spec.num_experts,
        spec.num_experts_per_token,
        spec.capacity_factor,
        num_trained=spec.num_trained_choices,
        loads_counted_over=balance.counted_over if balance is not None and has_loss else None,
        experts_choose=balance is not None and balance.expert_choice is not None,
    )


def _router(spec: MoESpec, hidden: Dim) -> tuple[Parameter, ...]:
    # the router is held whole by every rank, so its axis is not the one that expert parallelism cuts
    choices = Dim("router", spec.num_experts)
    weight = linear("router", choices, hidden, "router", role="router")
    bias = Parameter("router.bias", (choices,), "router", "bias")
    correction = Parameter("router.correction_bias", (choices,), "router", "bias", buffer=True)
    optional = ((bias, spec.router.bias), (correction, spec.router.correction_bias))
    return (*weight, *(parameter for parameter, is_used in optional if is_used))


def _experts(spec: MoESpec, hidden: Dim, ffn: Dim) -> tuple[Parameter, ...]:
    experts = Dim("experts", spec.num_experts)

    def stack(name: str, out: Dim, into: Dim) -> Parameter:
        return Parameter(
            f"experts.{name}",
            (experts, out, into),
            "routed_experts",
            "expert",
            input_dim=2,
            num_active=spec.num_experts_per_token,
        )

    def bias(name: str, out: Dim) -> Parameter:
        active = spec.num_experts_per_token
        return Parameter(f"experts.{name}", (experts, out), "routed_experts", "bias", num_active=active)

    stacks = (stack("gate_proj", ffn, hidden), stack("up_proj", ffn, hidden), stack("down_proj", hidden, ffn))
    biases = (bias("gate_bias", ffn), bias("up_bias", ffn), bias("down_bias", hidden))
    return (*stacks, *biases) if spec.expert_bias else stacks


def _shared_gate(hidden: Dim) -> tuple[Parameter, ...]:
    return linear("shared_expert_gate", Dim("gate", 1), hidden, "shared_expert", role="router")
