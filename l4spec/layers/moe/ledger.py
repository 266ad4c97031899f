"""Allocations and timed pieces of the module of a mixture of experts."""

from collections.abc import Iterator

from l4spec.layers.base import Width
from l4spec.layers.common.eager import EagerLayer, Piece
from l4spec.layers.common.ledger import COUNT, FLAG, INDEX, MOST_FEW_ROWS, WIDE, Ledger, gated_ffn, plain_ffn, rms_norm
from l4spec.layers.declaration import Work
from l4spec.layers.moe.spec import MoESpec


def _allocate(spec: MoESpec, width: Width, work: Work, ledger: Ledger) -> None:
    """Router in fp32; tokens sorted by expert, expert by expert, and back; the shared expert beside the sum."""
    tokens, top_k, item = work.num_tokens, spec.num_experts_per_token, ledger.item
    hidden_size = width.hidden_size
    choices, out = tokens * top_k, tokens * hidden_size * item
    if spec.input_norm is not None:
        rms_norm(ledger, tokens, hidden_size, weighted=True)
    _allocate_router(spec, hidden_size, tokens, ledger)
    scores = choices * (INDEX + WIDE + (0 if ledger.is_wide else item))
    is_alone = tokens == 1 and spec.capacity_factor is None
    given = spec.latent_size or hidden_size
    with ledger.holding(scores), ledger.holding(0 if spec.latent_size is None else tokens * given * item):
        routed = _allocate_alone(spec, given, ledger) if is_alone else _allocate_sorted(spec, given, work, ledger)
    if spec.latent_size is not None:
        ledger.take(out)
        ledger.free(routed)
        routed = out
    if spec.num_shared_experts:
        (gated_ffn if spec.gated else plain_ffn)(ledger, tokens, spec.shared_size, hidden_size)
        ledger.touch(out + 2 * tokens * item if spec.shared_gate else out)  # gated, or the sum
        ledger.touch(out)
        ledger.free(out)
    ledger.free(routed if spec.input_norm is None else routed + out)
    ledger.take(out)


def _allocate_router(spec: MoESpec, hidden_size: int, tokens: int, ledger: Ledger) -> None:
    """Logits of every expert in fp32, and as many scores where experts are not chosen by logits alone."""
    logits, choices = tokens * spec.num_experts * WIDE, tokens * spec.num_experts_per_token
    widened = 0 if ledger.is_wide else tokens * hidden_size * WIDE
    if spec.router.norm is not None:
        normed, vector = tokens * hidden_size * WIDE, hidden_size * WIDE
        ledger.touch(widened + vector * (1 if ledger.is_wide else 2))
        ledger.touch(widened + vector + normed + 2 * tokens * WIDE)  # squares, their means, the factor
        ledger.touch(widened + vector + 2 * normed + tokens * WIDE)
        widened = normed
    weight = 0 if ledger.is_wide else spec.num_experts * hidden_size * WIDE
    ledger.touch(widened + weight + logits)
    is_plain = not spec.router.correction_bias and spec.router.num_groups == 1
    with ledger.holding(logits):
        if is_plain:
            ledger.touch(choices * (INDEX + 3 * WIDE) + tokens * WIDE)
            return
        corrected = logits if spec.router.correction_bias else 0
        by_group = logits if spec.router.num_groups > 1 else 0
        ledger.touch(logits + corrected + by_group + _group_scores(spec, tokens))
        ledger.touch(logits + max(corrected, by_group) + choices * (INDEX + WIDE))
        ledger.touch(logits + choices * (INDEX + 3 * WIDE))


def _group_scores(spec: MoESpec, tokens: int) -> int:
    """Bytes of each group's best scores, their sum, the best groups, and which are open."""
    router = spec.router
    num_best = 2 if router.group_score == "top2_sum" else 1
    of_group = router.num_groups * ((num_best + 1) * WIDE + 2 * FLAG) + router.num_limited_groups * INDEX
    return tokens * of_group if router.num_groups > 1 else 0


def _allocate_alone(spec: MoESpec, hidden_size: int, ledger: Ledger) -> int:
    """One token: each chosen expert's weights are read in place. Takes the output and gives its bytes."""
    out, inner = hidden_size * ledger.item, spec.intermediate_size * ledger.item
    before = out * min(2, spec.num_experts_per_token - 1)  # the sum, and the term before
    ledger.touch(before + (out if spec.router.scales == "input" else 0) + max(2 * inner, inner + out))
    ledger.take(out)
    return out


def _hidden_in_an_expert(spec: MoESpec, hidden_size: int, busiest: int, ledger: Ledger) -> int:
    """Bytes between the projections of the expert that takes the most, whose output is counted already.

    In fp32 a few rows go in halves (`l4spec.layers.common.modules.linear`), which are copied to be contiguous by row;
    so three rows may take more than four.
    """
    size, few = spec.intermediate_size, min(busiest, MOST_FEW_ROWS) if ledger.is_wide and busiest > 1 else 0
    made = (3 if spec.gated else 2) * few * size if size % 2 == 0 else 0  # gate, up, and the copy
    left = few * (size + hidden_size) if hidden_size % 2 == 0 else 0  # their product, and the copy of the output
    return max(2 * busiest * size, made, left) * ledger.item


def _allocate_sorted(spec: MoESpec, hidden_size: int, work: Work, ledger: Ledger) -> int:
    """Allocate the tensors that the routed output keeps alive, and return their bytes."""
    tokens, item = work.num_tokens, ledger.item
    choices, out = tokens * spec.num_experts_per_token, tokens * hidden_size * item
    busiest = tokens if work.busiest_expert is None else work.busiest_expert
    rows, indices = choices * hidden_size * item, choices * INDEX
    capacity = 3 * choices * spec.num_experts * INDEX + indices if spec.capacity_factor is not None else 0
    ledger.touch(capacity)
    counts = spec.num_experts * COUNT
    counted = counts + (choices * FLAG if spec.capacity_factor is not None else 0)
    with ledger.holding(indices + counted):  # the order; how many tokens each expert has, and which choices fit
        ledger.touch(max(2 * indices, rows + indices, 2 * rows if spec.router.scales == "input" else 0))
        with ledger.holding(2 * rows):  # sorted tokens and results
            # beside it, where each expert's rows end
            ledger.touch(_hidden_in_an_expert(spec, hidden_size, busiest, ledger) + counts)
            with ledger.holding(indices):  # the way back
                ledger.touch(2 * indices)
                is_scaled = spec.router.scales == "output" or spec.capacity_factor is not None
                ledger.touch(2 * rows + choices * item if is_scaled else rows)
                kept = out if spec.num_experts_per_token > 1 else rows
                ledger.touch(rows + (kept if kept is out else 0))
    ledger.take(kept)
    return kept


def _pieces(spec: MoESpec, width: Width, work: Work, hit: float) -> Iterator[Piece]:
    """Choosing; sorting and gathering rows, each hit expert's gate, the way back; the shared expert's gate and sum."""
    tokens, top_k, hidden = work.num_tokens, spec.num_experts_per_token, spec.latent_size or width.hidden_size
    pairs = tokens * top_k
    for _ in filter(None, (spec.input_norm, spec.router.norm)):
        yield Piece("norm", (tokens * width.hidden_size, width.hidden_size))
    gate = "gate_silu" if spec.activation == "silu" else "gate_gelu_tanh"  # squares are timed as their like
    yield Piece("route", (tokens, spec.num_experts, top_k))
    yield Piece(gate, (pairs / hit * spec.intermediate_size,), hit)
    if tokens == 1 and spec.capacity_factor is None:
        yield Piece("scale", (hidden,), top_k)
    else:
        yield Piece("dispatch", (pairs, spec.num_experts))
        yield Piece("expert", (), hit)
        yield Piece("gather", (pairs * hidden,), 2)  # to the experts, and back
        yield Piece("write", (pairs * hidden,))  # the experts' results become one tensor
        yield Piece("scale", (pairs * hidden,))
        if top_k > 1:
            yield Piece("add", (pairs * hidden,))
    if spec.num_shared_experts:
        yield Piece(gate, (tokens * spec.shared_size,))
        yield Piece("add", (tokens * width.hidden_size,))
        if spec.shared_gate:
            yield Piece("scale", (tokens * width.hidden_size,))


EAGER = EagerLayer(_allocate, _pieces, code="moe")
