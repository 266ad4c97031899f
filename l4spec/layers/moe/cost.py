"""What a mixture of experts costs: all experts in memory, a few in compute."""

from l4spec.layers.base import Width
from l4spec.layers.common.gated import gated_live, gated_operations, gated_parameters, gated_saved
from l4spec.layers.common.ledger import COUNT, FLAG, INDEX, MOST_FEW_ROWS, WIDE, Tally, gated_ffn
from l4spec.layers.declaration import (
    Buffer,
    Declaration,
    Dim,
    Elementwise,
    Matmul,
    Operation,
    Parameter,
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

    def operations(work: Work) -> tuple[Operation, ...]:
        rows = _routed_rows(spec, work)
        return (
            Matmul("router", work.num_tokens, router[0]),  # x @ W_router.T
            Elementwise("dispatch", rows * hidden.size),  # tokens sorted by expert
            *gated_operations(rows, experts, expert_ffn.size),
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
        of_shared = gated_saved(work.num_tokens, shared_ffn, hidden) if shared else ()
        logits = Buffer("router_logits", work.num_tokens, (Dim("experts", spec.num_experts),), bytes_per_element=4)
        return (*gated_saved(rows, expert_ffn, hidden), *of_shared, logits)

    stream = tokens_of(width.hidden_size)
    parameters = (*router, *experts, *shared, *shared_gate)
    return Declaration(
        parameters,
        operations,
        inputs=(stream,),
        output=stream,
        live=live,
        saved=saved,
        held=lambda work, tally: _held(spec, hidden.size, work, tally),
    )


def _routed_rows(spec: MoESpec, work: Work) -> int:
    """(token, expert) pairs: top-k a token, or in training what experts that choose tokens take."""
    taken = spec.num_taken(work.num_tokens) if work.phase == "train" else None
    return work.num_tokens * spec.num_experts_per_token if taken is None else spec.num_experts * taken


def _held(spec: MoESpec, hidden_size: int, work: Work, tally: Tally) -> None:
    """Router in fp32; tokens sorted by expert, expert by expert, and back; the shared expert beside the sum."""
    tokens, top_k, item = work.num_tokens, spec.num_experts_per_token, tally.item
    choices, out = tokens * top_k, tokens * hidden_size * item
    _hold_router(spec, hidden_size, tokens, tally)
    scores = choices * (INDEX + WIDE + (0 if tally.is_wide else item))
    with tally.holding(scores):
        is_alone = tokens == 1 and spec.capacity_factor is None
        routed = _hold_alone(spec, hidden_size, tally) if is_alone else _hold_sorted(spec, hidden_size, work, tally)
        if spec.num_shared_experts:
            gated_ffn(tally, tokens, spec.shared_size, hidden_size)
            tally.touch(out + 2 * tokens * item if spec.shared_gate else out)  # gated, or the sum
            tally.touch(out)
            tally.free(out)
    tally.free(routed)
    tally.take(out)


def _hold_router(spec: MoESpec, hidden_size: int, tokens: int, tally: Tally) -> None:
    """Logits of every expert in fp32, and as many scores where experts are not chosen by logits alone."""
    logits, choices = tokens * spec.num_experts * WIDE, tokens * spec.num_experts_per_token
    widened = 0 if tally.is_wide else (tokens + spec.num_experts) * hidden_size * WIDE
    tally.touch(widened + logits)
    is_plain = not spec.router.correction_bias and spec.router.num_groups == 1
    with tally.holding(logits):
        if is_plain:
            tally.touch(choices * (INDEX + 3 * WIDE) + tokens * WIDE)
            return
        corrected = logits if spec.router.correction_bias else 0
        by_group = logits if spec.router.num_groups > 1 else 0
        tally.touch(logits + corrected + by_group + _group_scores(spec, tokens))
        tally.touch(logits + max(corrected, by_group) + choices * (INDEX + WIDE))
        tally.touch(logits + choices * (INDEX + 3 * WIDE))


def _group_scores(spec: MoESpec, tokens: int) -> int:
    """Bytes of each group's best scores, their sum, the best groups, and which are open."""
    router = spec.router
    num_best = 2 if router.group_score == "top2_sum" else 1
    of_group = router.num_groups * ((num_best + 1) * WIDE + 2 * FLAG) + router.num_limited_groups * INDEX
    return tokens * of_group if router.num_groups > 1 else 0


def _hold_alone(spec: MoESpec, hidden_size: int, tally: Tally) -> int:
    """One token: each chosen expert's weights are read where they lie. Takes the output and gives its bytes."""
    out, inner = hidden_size * tally.item, spec.intermediate_size * tally.item
    before = out * min(2, spec.num_experts_per_token - 1)  # the sum, and the term before
    tally.touch(before + (out if spec.router.scales == "input" else 0) + max(2 * inner, inner + out))
    tally.take(out)
    return out


def _hidden_in_an_expert(spec: MoESpec, hidden_size: int, busiest: int, tally: Tally) -> int:
    """Bytes between the projections of the expert that takes the most, whose output is counted already.

    In fp32 a few rows go in halves (`l4spec.layers.common.modules.linear`), which are copied to lie row by row; so
    three rows may take more than four.
    """
    size, few = spec.intermediate_size, min(busiest, MOST_FEW_ROWS) if tally.is_wide and busiest > 1 else 0
    made = 3 * few * size if size % 2 == 0 else 0  # gate, up, and the copy
    left = few * (size + hidden_size) if hidden_size % 2 == 0 else 0  # their product, and the copy of the output
    return max(2 * busiest * size, made, left) * tally.item


def _hold_sorted(spec: MoESpec, hidden_size: int, work: Work, tally: Tally) -> int:
    """Takes what the routed output keeps alive and gives its bytes: with one choice a token, the rows themselves."""
    tokens, item = work.num_tokens, tally.item
    choices, out = tokens * spec.num_experts_per_token, tokens * hidden_size * item
    busiest = tokens if work.busiest_expert is None else work.busiest_expert
    rows, indices = choices * hidden_size * item, choices * INDEX
    capacity = 3 * choices * spec.num_experts * INDEX + indices if spec.capacity_factor is not None else 0
    tally.touch(capacity)
    counts = spec.num_experts * COUNT
    counted = counts + (choices * FLAG if spec.capacity_factor is not None else 0)
    with tally.holding(indices + counted):  # the order; how many tokens each expert has, and which choices fit
        tally.touch(max(2 * indices, rows + indices, 2 * rows if spec.router.scales == "input" else 0))
        with tally.holding(2 * rows):  # sorted tokens and results
            # beside it, where each expert's rows end
            tally.touch(_hidden_in_an_expert(spec, hidden_size, busiest, tally) + counts)
            with tally.holding(indices):  # the way back
                tally.touch(2 * indices)
                is_scaled = spec.router.scales == "output" or spec.capacity_factor is not None
                tally.touch(2 * rows + choices * item if is_scaled else rows)
                kept = out if spec.num_experts_per_token > 1 else rows
                tally.touch(rows + (kept if kept is out else 0))
    tally.take(kept)
    return kept


def _router(spec: MoESpec, hidden: Dim) -> tuple[Parameter, ...]:
    # the router is held whole by every rank, so its axis is not the one that expert parallelism cuts
    choices = Dim("router", spec.num_experts)
    weight = linear("router", choices, hidden, "router", role="router")
    bias = Parameter("router.correction_bias", (choices,), "router", "bias", buffer=True)
    return (*weight, bias) if spec.router.correction_bias else weight


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

    return (stack("gate_proj", ffn, hidden), stack("up_proj", ffn, hidden), stack("down_proj", hidden, ffn))


def _shared_gate(hidden: Dim) -> tuple[Parameter, ...]:
    return linear("shared_expert_gate", Dim("gate", 1), hidden, "shared_expert", role="router")
