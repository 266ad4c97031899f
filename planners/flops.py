"""How many floating-point operations a model's mathematics needs."""

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import AttentionPairs, Work
from planners.cost_sheet import Workload, cost
from planners.plan_types import Flops


def count_flops(graph: LayerGraph, *, context: int, batch: int) -> Flops:
    """`model_flops` of the usual passes: multiply-adds count 2, only attended pairs and chosen experts count.

    Norms, softmax, rotations and activations are left out by convention.
    """
    vision = graph.model.vision
    return Flops(
        forward_per_token=_matmuls_of_one_token(graph),
        attention_per_pair=_attention_per_pair(graph),
        prefill=model_flops(graph, Work(batch, context, phase="prefill", num_logits=min(1, context))),
        decode=model_flops(graph, Work(batch, 1, max(context - 1, 0), phase="decode")),
        train_step=3 * model_flops(graph, Work(batch, context, phase="train")),
        vision_per_tile=None if vision is None else _vision_of_one_tile(graph),
    )


def model_flops(graph: LayerGraph, text: Work, num_tiles: int = 0) -> int:
    """FLOPs of one forward pass over `text` and `num_tiles` image tiles."""
    return cost(graph, Workload(text, num_tiles)).flops


def _matmuls_of_one_token(graph: LayerGraph) -> int:
    rows = cost(graph, Workload(Work(1, 1))).rows
    return sum(row.group.count * row.matmul_flops for row in rows if row.group.first.scope == "text")


def _attention_per_pair(graph: LayerGraph) -> int:
    """FLOPs of one (query, key) pair in every text layer: 2 * num_heads * (qk_dim + v_dim) summed over layers."""
    rows = cost(graph, Workload(Work(1, 1))).rows
    return sum(
        row.group.count * op.flops // op.pairs
        for row in rows
        for op in row.operations
        if isinstance(op, AttentionPairs) and op.pairs and row.group.first.scope == "text"
    )


def _vision_of_one_tile(graph: LayerGraph) -> int:
    rows = cost(graph, Workload(Work(0, 0), num_tiles=1)).rows
    return sum(row.flops for row in rows if row.group.first.scope == "vision")
