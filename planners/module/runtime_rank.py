"""One rank of a layout in our runtime: its regions of tensors, its caches, its share of FLOPs.

A layout's plan (`planners.device.memory`) speaks of the fullest device; these functions of any one, where
vocabularies are divided unevenly or stages differ, by the same rule table.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers import declaration_of, eager_layer
from l4spec.layers.declaration import AttentionPairs, Matmul, Operation, Work
from l4spec.quantization.packing import StoredSize
from l4spec.sharding.layout import Layout, MeshCoordinate, place_of
from l4spec.sharding.rules import layout_for, region_of, stage_of
from planners.catalog import engine
from planners.counts.kv_cache import cache_bytes
from planners.counts.weights import Scheme, stored_size
from planners.device.memory import cache_rows
from planners.device.stages import PipelineStage, every_stage

Arrived = Mapping[str, int]
"""By node id of a mixture, how many rows its experts on a rank get in a pass, from all ranks along ep."""


@dataclass(frozen=True, slots=True)
class RankWeights:
    """Parameters of one rank by part, and the bytes of all its tensors, buffers included."""

    params_by_part: dict[str, int]
    weight_bytes: int


def weights_on_rank(graph: LayerGraph, scheme: Scheme, layout: Layout, rank: int) -> RankWeights:
    """Weights on a rank. A tied head on another stage than the embedding has a table of its own."""
    place, by_part, stored = place_of(layout, rank), defaultdict[str, int](int), StoredSize(0)
    for node in nodes_with_ties(graph, layout, place):
        for parameter in node.declaration.parameters:
            if parameter.tied_to is None:
                shape = tuple(map(len, region_of(node, parameter, layout, place)))
                stored = stored + stored_size(graph, node, parameter, shape, scheme)
                if not parameter.buffer:
                    by_part[node.part_of(parameter)] += prod(shape)
    return RankWeights(dict(by_part), stored.total_bytes)


def nodes_on_rank(graph: LayerGraph, layout: Layout, place: MeshCoordinate) -> Iterator[LayerNode]:
    """The nodes of a rank's pipeline stage."""
    return (node for node in graph.nodes if stage_of(graph, node, layout.pp) == place.pp)


def nodes_with_ties(graph: LayerGraph, layout: Layout, place: MeshCoordinate) -> Iterator[LayerNode]:
    """The nodes with tensors on a rank: those of its stage, and the embedding if a tied head is on another stage."""
    yield from nodes_on_rank(graph, layout, place)
    if graph.model.text.head.tied and 0 < place.pp == layout.pp - 1:
        yield next(node for node in graph.nodes if node.role == "embedding")


def stage_on_rank(graph: LayerGraph, scheme: Scheme, layout: Layout, place: MeshCoordinate) -> PipelineStage:
    """The pipeline stage of a rank, as the plan of its layout has it."""
    return every_stage(graph, scheme, layout.tp, layout.ep, layout.pp)[place.pp]


def cache_on_rank(
    graph: LayerGraph, stage: PipelineStage, layout: Layout, sequences: int, tokens: int, item: int
) -> int:
    """Bytes that a rank of `stage` caches for `sequences` of its own, of `tokens` tokens each that it runs.

    Each layer's cache follows its law; `item` is the size of a cached number.
    """
    return cache_bytes(cache_rows(graph, stage, layout.tp, item), engine("ideal"), tokens, sequences)


@dataclass(frozen=True, slots=True)
class RankFlops:
    """Executed FLOPs of one layer on a rank; None if they are not planned: some attention to other ranks' tokens."""

    node: LayerNode
    flops: int | None


def executed_on_rank(
    graph: LayerGraph, layout: Layout, rank: int, work: Work, *, arrived: Arrived | None = None, num_earlier: int = 0
) -> Iterator[RankFlops]:
    """Executed FLOPs of a rank's text layers for `work`: its own sequences, or its own tokens of divided ones.

    Rows of routed experts are those that have `arrived`; without it every rank is assumed to get as many as it sends.
    `num_earlier` tokens of each divided sequence are other ranks'. With `work.phase == "train"`, forward and backward
    together.
    """
    place = place_of(layout, rank)
    for node in nodes_on_rank(graph, layout, place):
        if node.scope == "text":
            operations = _operations(node, layout, place, work)
            if arrived is not None:
                operations = [_with_rows(op, arrived.get(node.id)) for op in operations]
            if layout.cp > 1 and node.role == "attention":
                known = _along_cp(node, operations, work, num_earlier)
            else:
                known = operations
            yield RankFlops(node, None if known is None else sum(_flops(op, work) for op in known))


def _flops(operation: Operation, work: Work) -> int:
    return operation.flops + (operation.backward_flops if work.phase == "train" else 0)


def _operations(node: LayerNode, layout: Layout, place: MeshCoordinate, work: Work) -> list[Operation]:
    """Operations of a narrower layer if the kind has one, else with the rank's region of each weight."""
    spec = node.spec.narrowed(layout_for(node, layout).tp)
    operations = declaration_of(spec, node.width).executed_operations(work)
    return [_in_region(op, node, layout, place) if spec == node.spec else op for op in operations]


def _in_region(operation: Operation, node: LayerNode, layout: Layout, place: MeshCoordinate) -> Operation:
    if not isinstance(operation, Matmul):
        return operation
    dim_ranges = zip(operation.weight.dims, region_of(node, operation.weight, layout, place), strict=True)
    # a row goes through one expert, wherever that is
    dims = tuple(
        dim if dim.axis == "experts" else replace(dim, size=len(run), units=len(run)) for dim, run in dim_ranges
    )
    return replace(operation, weight=replace(operation.weight, dims=dims))


def _with_rows(operation: Operation, arrived: int | None) -> Operation:
    if arrived is None or not isinstance(operation, Matmul) or operation.weight.role != "expert":
        return operation
    return replace(operation, rows=arrived)


def _along_cp(node: LayerNode, operations: list[Operation], work: Work, num_earlier: int) -> list[Operation] | None:
    """A chunk is on one rank; a causal layer gets all earlier tokens' keys, each rank's as a dense block."""
    mixing, eager = node.declaration.mixing, eager_layer(node.kind)
    reach = None if mixing is None else mixing.reach
    if reach is not None and reach.kind == "chunk":
        return operations
    if reach is None or reach.kind != "full" or eager is None or not eager.dense_ring:
        return None
    pairs = work.num_tokens * (num_earlier + work.num_queries)
    return [replace(op, pairs=pairs) if isinstance(op, AttentionPairs) else op for op in operations]
