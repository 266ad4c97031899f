"""Measured pieces of one layer of our module, as its code runs them on a CPU without gradients.

Matrix products are those that the layer declares; the operations between them are those of its kind
(`l4spec.layers.common.eager`). For a kind without a description, every declared operation counts, and nothing between
them.
"""

from collections.abc import Iterator

from l4spec.graph.layer_graph import LayerGroup, LayerNode
from l4spec.layers import eager_layer
from l4spec.layers.common.eager import Piece
from l4spec.layers.common.ledger import MOST_FEW_ROWS
from l4spec.layers.declaration import AttentionPairs, Elementwise, Matmul, Work
from planners.timing.layer_demand import UNIFORM, Routing

LARGE = 1 << 22
"""Elements of a product's result that are more than was measured with it: its memory is new each time."""


def pieces_of(node: LayerNode, work: Work, hit: float) -> Iterator[Piece]:
    """The pieces of one layer that reads `work`; `hit` experts of it get rows, if it has any."""
    yield from _products(node, work, hit)
    eager = eager_layer(node.kind)
    if eager is None or eager.pieces is None:
        yield from _declared(node, work)
    else:
        yield from eager.pieces(node.spec, node.width, work, hit)


def code_of(node: LayerNode) -> str:
    """The kind whose calibrated constant goes with a layer's code: its own, or one whose module is the same."""
    eager = eager_layer(node.kind)
    return node.kind if eager is None else eager.code


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
    routed = group.declaration.routed
    if routed is None or not work.num_tokens:
        return 1.0
    return routing.reached(group, work.num_tokens)


def _declared(node: LayerNode, work: Work) -> Iterator[Piece]:
    """Element-wise operations as sums, and attention as prompts from their start, for a kind of somebody's own."""
    for op in node.declaration.executed_operations(work):
        if isinstance(op, Elementwise) and op.elements:
            yield Piece("add", (op.elements,))
        elif isinstance(op, AttentionPairs) and op.pairs:
            side = max(1.0, (op.pairs / work.num_sequences) ** 0.5)
            yield Piece("causal", (work.num_sequences * op.num_heads, side, max(op.qk_dim, op.v_dim)))
