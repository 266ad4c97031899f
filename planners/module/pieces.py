"""Which measured pieces one layer of our module is made of, as its code runs them on a CPU without gradients.

Matrix products are those that the layer declares to run; what lies between them follows the layer's code. Of a kind
that is not known here, every declared operation counts, and nothing between them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from l4spec.graph.layer_graph import LayerGroup, LayerNode
from l4spec.layers.add.spec import AddSpec
from l4spec.layers.common.ledger import MOST_FEW_ROWS
from l4spec.layers.declaration import AttentionPairs, Elementwise, Matmul, Work
from l4spec.layers.embedding.spec import EmbeddingSpec
from l4spec.layers.geglu.spec import GeGLUSpec
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.layernorm.spec import LayerNormSpec
from l4spec.layers.lm_head.spec import LMHeadSpec
from l4spec.layers.mla.spec import MLASpec
from l4spec.layers.mlp.spec import MLPSpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.layers.rmsnorm.spec import RMSNormSpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from planners.timing.layer_demand import UNIFORM, Routing


@dataclass(frozen=True, slots=True)
class Piece:
    """One measured piece by the name of its table, at these sizes, run so many times."""

    name: str
    sizes: tuple[float, ...]
    times: float = 1.0


LARGE = 1 << 22
"""Elements of a product's result that are more than was measured with it: its memory is new each time."""


def pieces_of(node: LayerNode, work: Work, hit: float) -> Iterator[Piece]:
    """The pieces of one layer that reads `work`; `hit` experts of it get rows, if it has any."""
    from planners.module.attention_pieces import between_gqa, between_mla

    spec, tokens, hidden = node.spec, work.num_tokens, node.width.hidden_size
    yield from _products(node, work, hit)
    match spec:
        case GQASpec():
            yield from between_gqa(spec, work)
        case MLASpec():
            yield from between_mla(spec, work)
        case SwiGLUSpec() | GeGLUSpec():
            yield Piece(_gate(spec), (tokens * spec.intermediate_size,))
        case MLPSpec():
            yield Piece(
                "gate_gelu" if spec.activation == "gelu" else "gate_gelu_tanh", (tokens * spec.intermediate_size,)
            )
        case MoESpec():
            yield from _between_moe(spec, work, hidden, hit)
        case RMSNormSpec() | LayerNormSpec():
            yield Piece("norm", (tokens * hidden, hidden))
        case AddSpec():
            yield Piece("add", (tokens * hidden,), spec.num_inputs - 1)
        case EmbeddingSpec():
            yield Piece("gather", (tokens * hidden,))
        case LMHeadSpec():
            pass
        case _:
            yield from _declared(node, work)


def _gate(spec: SwiGLUSpec | GeGLUSpec) -> str:
    if isinstance(spec, SwiGLUSpec):
        return "gate_silu"
    return "gate_gelu_tanh" if spec.approximate == "tanh" else "gate_gelu"


def _products(node: LayerNode, work: Work, hit: float) -> Iterator[Piece]:
    """Every declared product; those of routed experts once for each expert that is expected to get rows."""
    for op in node.declaration.executed_operations(work):
        if isinstance(op, Matmul) and op.rows:
            outputs, inputs = op.weight.shape[-2:]
            is_stacked = op.weight.dims[0].axis == "experts" and len(op.weight.shape) == 3
            times = hit if is_stacked else 1.0
            is_of_expert = is_stacked and op.rows / times > MOST_FEW_ROWS
            name = "expert_product" if is_of_expert else "product"
            yield Piece(name, (op.rows / times, inputs, outputs), times)
            if op.rows / times * outputs > LARGE:
                yield Piece("fresh", (op.rows / times * outputs,), times)


def hit_experts(group: LayerGroup, work: Work, routing: Routing = UNIFORM) -> float:
    """Experts of a layer that get a row; a single token reaches exactly as many as it chooses, if chosen uniformly."""
    spec = group.first.spec
    if not isinstance(spec, MoESpec) or not work.num_tokens:
        return 1.0
    return routing.reached(group, spec.num_experts, spec.num_experts_per_token, work.num_tokens)


def _between_moe(spec: MoESpec, work: Work, hidden: int, hit: float) -> Iterator[Piece]:
    """Choosing; sorting and gathering rows, each hit expert's gate, the way back; the shared expert's gate and sum."""
    tokens, top_k = work.num_tokens, spec.num_experts_per_token
    pairs = tokens * top_k
    gate = "gate_silu" if spec.activation == "silu" else "gate_gelu_tanh"
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
        yield Piece("add", (tokens * hidden,))
        if spec.shared_gate:
            yield Piece("scale", (tokens * hidden,))


def _declared(node: LayerNode, work: Work) -> Iterator[Piece]:
    """Element-wise operations as sums, and attention as prompts from their start, for a kind of somebody's own."""
    for op in node.declaration.executed_operations(work):
        if isinstance(op, Elementwise) and op.elements:
            yield Piece("add", (op.elements,))
        elif isinstance(op, AttentionPairs) and op.pairs:
            side = max(1.0, (op.pairs / work.num_sequences) ** 0.5)
            yield Piece("causal", (work.num_sequences * op.num_heads, side, max(op.qk_dim, op.v_dim)))
