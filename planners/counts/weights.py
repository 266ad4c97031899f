"""Bytes of a model's weights under a quantization scheme."""

from collections import defaultdict

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.quantization.tensors import Scheme, scheme_of, stored_size, stored_tensors, target_of
from planners.plan_types import Weights

__all__ = ["Scheme", "expert_bytes", "scheme_of", "stored_size", "target_of", "weigh"]


@kept_with(maxsize=512)
def weigh(graph: LayerGraph, scheme: Scheme) -> Weights:
    """The whole model's weights: by part, payload and scales. Tied tensors count once, buffers count."""
    by_part: dict[str, int] = defaultdict(int)
    scale_bytes = 0
    for stored in stored_tensors(graph, scheme):
        by_part[stored.node.part_of(stored.parameter)] += stored.count * stored.size.total_bytes
        scale_bytes += stored.count * (stored.size.scale_bytes + stored.size.zero_point_bytes)
    return Weights(
        bytes=sum(by_part.values()), scale_bytes=scale_bytes, scheme=scheme.name, by_part=dict(by_part), refusals=()
    )


@kept_with(maxsize=512)
def expert_bytes(graph: LayerGraph, scheme: Scheme) -> int:
    """Bytes of the tensors that have an axis of experts, which expert parallelism divides."""
    return sum(
        stored.count * stored.size.total_bytes
        for stored in stored_tensors(graph, scheme)
        if stored.parameter.is_per_expert
    )
