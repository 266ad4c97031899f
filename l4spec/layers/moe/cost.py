"""Cost of a mixture of experts: memory of all experts, compute of the chosen ones."""

from functools import partial

from l4spec.layers.base import Width
from l4spec.layers.common.gated import (
    gated_live,
    gated_operations,
    gated_parameters,
    gated_saved,
    plain_live,
    plain_operations,
    plain_parameters,
)
from l4spec.layers.declaration import (
    Buffer,
    Declaration,
    Dim,
    Elementwise,
    Matmul,
    Operation,
    Parameter,
    Part,
    RoutedExperts,
    Work,
    linear,
    tokens_of,
)
from l4spec.layers.moe.spec import MoESpec


def declare(spec: MoESpec, width: Width) -> Declaration:
    """Router [experts, hidden]; stacked gate_proj, up_proj [experts, ffn, hidden], down_proj [experts, hidden, ffn].

    Experts without a gate have no gate_proj, and with a latent size they are that wide outside instead of hidden.
    A token's FLOPs are those of its `num_experts_per_token` experts, the shared ones and the router; with a capacity,
    the bound that no token is dropped. Experts that choose tokens
    in training count those they take. Choosing and scattering tokens counts no FLOPs by convention.
    """
    hidden = Dim("hidden", width.hidden_size)
    expert_ffn, shared_ffn = Dim("expert_ffn", spec.intermediate_size), Dim("ffn", max(spec.shared_size, 1))
    router = _router(spec, hidden, width.vocab_size)
    given = hidden if spec.latent_size is None else Dim("latent", spec.latent_size)
    latent_down, latent_up = _latent(spec, hidden, given)
    experts = _experts(spec, given, expert_ffn)
    shared_parameters = gated_parameters if spec.gated else plain_parameters
    shared = shared_parameters("shared_expert.", shared_ffn, hidden, "shared_expert") if spec.num_shared_experts else ()
    shared_gate = _shared_gate(hidden) if spec.shared_gate else ()
    run_operations = gated_operations if spec.gated else plain_operations
    own_norm = (_norm("input_norm.weight", hidden),) if spec.input_norm else ()
    optional = (("normalise", spec.input_norm), ("normalise_for_router", spec.router.norm))
    norms = tuple(name for name, norm in optional if norm)

    def operations(work: Work) -> tuple[Operation, ...]:
        rows = _routed_rows(spec, work)
        return (
            *(Elementwise(name, work.num_tokens * hidden.size) for name in norms),  # x / rms(x) * weight
            Matmul("router", work.num_tokens, router[0]),  # x @ W_router.T
            *(Matmul("latent_down_proj", work.num_tokens, weight) for weight in latent_down),  # x @ W_down.T
            Elementwise("dispatch", rows * given.size),  # tokens sorted by expert
            *run_operations(rows, tuple(p for p in experts if p.role == "expert"), expert_ffn.size),
            Elementwise("combine", rows * given.size),  # rows summed by token
            *(Matmul("latent_up_proj", work.num_tokens, weight) for weight in latent_up),  # y @ W_up.T
            *(run_operations(work.num_tokens, shared, shared_ffn.size) if shared else ()),
            *(Matmul("shared_expert_gate", work.num_tokens, gate) for gate in shared_gate),  # sigmoid(x w)
        )

    stream = tokens_of(width.hidden_size)
    parameters = (*router, *own_norm, *latent_down, *experts, *latent_up, *shared, *shared_gate)
    return Declaration(
        parameters,
        operations,
        inputs=(stream,),
        output=stream,
        live=lambda work: _live(spec, work, hidden, given),
        saved=lambda work: _saved(spec, work, hidden, given),
        routed=_routing(spec),
        activation=spec.activation,
        uncut={} if spec.latent_size is None else {"ep": "experts on latents are not divided among ranks yet"},
    )


def _live(spec: MoESpec, work: Work, hidden: Dim, given: Dim) -> tuple[Buffer, ...]:
    rows, ffn = work.num_tokens * spec.num_experts_per_token, Dim("expert_ffn", spec.intermediate_size)
    between = (gated_live if spec.gated else plain_live)(rows, ffn, given, "experts.")
    normed = (Buffer("normed_tokens", work.num_tokens, (hidden,)),) if spec.input_norm else ()
    return (*normed, *between, Buffer("combined", work.num_tokens, (hidden,)), Buffer("expert_output", rows, (given,)))


def _saved(spec: MoESpec, work: Work, hidden: Dim, given: Dim) -> tuple[Buffer, ...]:
    """Tensors that eager autograd saves: those of the experts, the sum of latents, and the router's fp32 logits."""
    kept = partial(gated_saved, clamped=spec.clamp is not None) if spec.gated else plain_live
    routed_rows, expert_ffn = _routed_rows(spec, work), Dim("expert_ffn", spec.intermediate_size)
    dispatched, *inside = kept(routed_rows, expert_ffn, given, "experts.")
    # needed with frozen experts too: the gradient of a score needs the rows that it scales, given or returned
    of_routed = (dispatched._replace(name="dispatched", gradient_of=()), *inside)
    shared_ffn = Dim("ffn", spec.shared_size)
    of_shared = kept(work.num_tokens, shared_ffn, hidden, "shared_expert.") if spec.num_shared_experts else ()
    if spec.input_norm is not None:  # then what shared experts read is not the layer's own input
        of_shared = tuple(buffer._replace(name=buffer.name.replace("_input", "_tokens")) for buffer in of_shared)
    of_router = (Buffer("router_input", work.num_tokens, (hidden,), bytes_per_element=4),) if spec.router.norm else ()
    latent_sum = Buffer("latent_sum", work.num_tokens, (given,), gradient_of=("latent_up_proj",))
    of_latent = () if spec.latent_size is None else (latent_sum,)
    logits = Buffer("router_logits", work.num_tokens, (Dim("experts", spec.num_experts),), bytes_per_element=4)
    return (*of_routed, *of_latent, *of_shared, *of_router, logits)


def _routed_rows(spec: MoESpec, work: Work) -> int:
    """(token, expert) pairs: top-k per token, or in training those of experts that choose tokens."""
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
        width=spec.latent_size,
    )


def _router(spec: MoESpec, hidden: Dim, vocab_size: int) -> tuple[Parameter, ...]:
    # the router is whole on every rank, so its axis is not the one that expert parallelism cuts
    choices = Dim("router", spec.num_experts)
    weight = linear("router", choices, hidden, "router", role="router")
    bias = Parameter("router.bias", (choices,), "router", "bias")
    correction = Parameter("router.correction_bias", (choices,), "router", "bias", buffer=True)
    ids = (Dim("token", vocab_size), Dim("choice", spec.num_experts_per_token))
    table = Parameter("router.experts_of_token", ids, "router", "other", buffer=True, index=spec.num_experts)
    scale = Parameter("router.expert_scale", (choices,), "router", "other", start=1.0)
    optional = (
        (bias, spec.router.bias),
        (correction, spec.router.correction_bias),
        (_norm("router.norm.weight", hidden, "router"), spec.router.norm),
        (scale, spec.router.expert_scale),
        (table, spec.router.by_token),
    )
    return (*weight, *(parameter for parameter, is_used in optional if is_used))


def _norm(name: str, hidden: Dim, part: Part = "norm") -> Parameter:
    return Parameter(name, (hidden,), part, "norm")


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

    first = ("gate", "up") if spec.gated else ("up",)
    stacks = (*(stack(f"{name}_proj", ffn, hidden) for name in first), stack("down_proj", hidden, ffn))
    biases = (*(bias(f"{name}_bias", ffn) for name in first), bias("down_bias", hidden))
    return (*stacks, *biases) if spec.expert_bias else stacks


def _latent(spec: MoESpec, hidden: Dim, latent: Dim) -> tuple[tuple[Parameter, ...], tuple[Parameter, ...]]:
    """The projections before and after routed experts; none without a latent size."""
    if spec.latent_size is None:
        return (), ()
    down = linear("latent_down_proj", latent, hidden, "routed_experts")
    return down, linear("latent_up_proj", hidden, latent, "routed_experts")


def _shared_gate(hidden: Dim) -> tuple[Parameter, ...]:
    return linear("shared_expert_gate", Dim("gate", 1), hidden, "shared_expert", role="router")
