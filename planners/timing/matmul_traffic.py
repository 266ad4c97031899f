"""Bytes that matmuls move in training beside their FLOPs: inputs, outputs, weights and gradients of weights.

A matmul of m rows, k inputs and n outputs reads and writes m (k + n) elements in each of its three passes (forward,
gradient of the input, gradient of the weight). It reads k n weights in the first two, and in the third it adds k n
products to an fp32 gradient. Matrices cut by many ranks, narrow ones (experts) and few rows move more bytes a FLOP.
"""

from math import prod
from typing import NamedTuple

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Matmul
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import shard_shape
from planners.timing.layer_demand import of_tokens

_PASSES = 3
_ACTIVATION = 2
"""bf16, also where a matmul casts its inputs: they are read in bf16."""
_READ_TWICE = 2 * 2
_ADDED = 2 * 4


class MatmulTraffic(NamedTuple):
    """Elements of one layer's matmuls: of inputs and outputs per token of its sequences, and of weights on a device.

    Over the ranks of tp, `per_token` is their sum: each of them has a part of the inputs or of the outputs.
    """

    per_token: float
    weights: int

    def bytes(self, tokens: float, micro_batches: float, *, again: float = 0.0, frozen: bool = False) -> float:
        """Bytes of a step: `tokens` over all ranks of tp are shared out, weights are read in each micro-batch.

        `again` forward passes are recomputed; frozen weights have no gradient.
        """
        passes = _PASSES + again - (1 if frozen else 0)
        of_weight = _READ_TWICE + 2 * again + (0 if frozen else _ADDED)
        return tokens * passes * _ACTIVATION * self.per_token + micro_batches * of_weight * self.weights


@kept_with(maxsize=1024)
def matmul_traffic(graph: LayerGraph, node_id: str, tp: int, ep: int, expert_tp: int) -> MatmulTraffic:
    """The traffic of the layer `node_id` (the first of its kind): experts are cut by `ep` and `expert_tp`."""
    node = graph.by_id[node_id]
    operations, tokens = of_tokens(node.declaration, training=True)
    per_token, weights = 0.0, 0
    for matmul in operations:
        if isinstance(matmul, Matmul):
            is_expert = matmul.weight.is_per_expert
            cut = Layout(tp=expert_tp, ep=ep) if is_expert else Layout(tp=tp)
            shape = shard_shape(node, matmul.weight, cut)
            first, *rest = shape[1:] if is_expert else shape
            per_token += matmul.rows / tokens * (first + prod(rest)) * cut.tp
            weights += prod(shape)
    return MatmulTraffic(per_token, weights)
