"""Cost of a switch layer: memory of all experts, compute of one expert per token."""

from l4spec.layers.base import Width
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
from l4spec_switch.spec import SwitchSpec


def declare(spec: SwitchSpec, width: Width) -> Declaration:
    """Router [experts, hidden]; stacked wi [experts, ffn, hidden] and wo [experts, hidden, ffn].

    4 * hidden * ffn FLOPs a token and 2 * hidden * experts for the router. `routed` says the rest: which weights a step
    reads, and what expert parallelism sends.
    """
    hidden, ffn = Dim("hidden", width.hidden_size), Dim("expert_ffn", spec.intermediate_size)
    experts = Dim("experts", spec.num_experts)
    (router,) = linear("router", Dim("router", spec.num_experts), hidden, "router", role="router")
    wi, wo = (
        Parameter(f"experts.{name}", (experts, *dims), "routed_experts", "expert", input_dim=2, num_active=1)
        for name, dims in (("wi", (ffn, hidden)), ("wo", (hidden, ffn)))
    )

    def operations(work: Work) -> tuple[Operation, ...]:
        return (
            Matmul("router", work.num_tokens, router),  # x @ W_router.T
            Matmul("wi", work.num_tokens, wi),  # x @ W_i.T
            Elementwise("activate", work.num_tokens * ffn.size),  # relu
            Matmul("wo", work.num_tokens, wo),  # h @ W_o.T
            Elementwise("scale", work.num_tokens * hidden.size),  # probability * y
        )

    def live(work: Work) -> tuple[Buffer, ...]:
        widths = {"sorted": hidden, "inner": ffn, "activated": ffn, "output": hidden, "scaled": hidden}
        return tuple(Buffer(name, work.num_tokens, (dim,)) for name, dim in widths.items())

    stream = tokens_of(width.hidden_size)
    return Declaration(
        (router, wi, wo),
        operations,
        inputs=(stream,),
        output=stream,
        live=live,
        saved=live,
        routed=RoutedExperts(spec.num_experts, 1),
        activation="relu",
    )
