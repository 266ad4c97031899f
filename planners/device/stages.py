"""What the fullest device of a layout holds: bytes of every pipeline stage, by the rules of `l4spec.sharding`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from math import prod

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.quantization.packing import StoredSize
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import is_after_blocks, shard_shape, split_layers
from planners.counts.weights import Scheme, stored_size


@dataclass(frozen=True, slots=True)
class PipelineStage:
    """One pipeline stage on one device: weight bytes, its layers' cache rows, and which ends of the model it holds."""

    index: int
    weights: StoredSize
    num_params: int
    layers: tuple[int, ...]
    cache_counts: tuple[tuple[int, int], ...]
    first: bool
    last: bool


@dataclass(frozen=True, slots=True)
class _LayerTable:
    """Device bytes and parameters of every text layer, of what stands before the first, and after the last."""

    layers: tuple["_Size", ...]
    before: "_Size"
    after: "_Size"
    embedding: "_Size"


@kept_with(maxsize=1024)
def _layer_table(graph: LayerGraph, scheme: Scheme, tp: int, ep: int) -> _LayerTable:
    layout, classes = Layout(tp=tp, ep=ep), _layer_classes(graph)
    sizes: dict[int, _Size] = {}
    layers = []
    for layer, nodes in enumerate(_nodes_by_layer(graph)):
        key = layer if scheme.depends_on_layer else classes[layer]  # equal layers are sized once
        if key not in sizes:
            sizes[key] = _total(
                _node_size(graph, node, scheme, layout) for node in nodes if node.declaration.parameters
            )
        layers.append(sizes[key])
    before = after = embedding = _NOTHING
    for group in graph.groups:
        if group.first.scope == "vision" or group.first.layer is None:
            size = _times(_node_size(graph, group.first, scheme, layout), group.count)
            if is_after_blocks(group.first):
                after = _sum(after, size)
            else:
                before = _sum(before, size)
                embedding = size if group.first.role == "embedding" else embedding
    return _LayerTable(tuple(layers), before, after, embedding)


@kept_with(maxsize=64)
def _nodes_by_layer(graph: LayerGraph) -> tuple[tuple[LayerNode, ...], ...]:
    """The nodes of each layer of the language model."""
    by_layer: list[list[LayerNode]] = [[] for _ in range(graph.num_layers)]
    for node in graph.nodes:
        if node.scope == "text" and node.layer is not None:
            by_layer[node.layer].append(node)
    return tuple(map(tuple, by_layer))


_Size = tuple[StoredSize, int]
_NOTHING: _Size = (StoredSize(0), 0)


def _total(sizes: Iterable[_Size]) -> _Size:
    return reduce(_sum, sizes, _NOTHING)


def _times(size: _Size, count: int) -> _Size:
    stored = size[0]
    return StoredSize(
        count * stored.payload_bytes, count * stored.scale_bytes, count * stored.zero_point_bytes
    ), count * size[1]


def _sum(a: _Size, b: _Size) -> _Size:
    return a[0] + b[0], a[1] + b[1]


def _node_size(graph: LayerGraph, node: LayerNode, scheme: Scheme, layout: Layout) -> _Size:
    total, count = StoredSize(0), 0
    for parameter in node.declaration.parameters:
        if not parameter.tied_to:
            shape = shard_shape(node, parameter, layout)
            total = total + stored_size(graph, node, parameter, shape, scheme)
            count += prod(shape)
    return total, count


@kept_with(maxsize=1024)
def stages(graph: LayerGraph, scheme: Scheme, tp: int, ep: int, pp: int) -> tuple[PipelineStage, ...]:
    """Of the pipeline stages, as `every_stage` gives them, those that differ."""
    return _distinct(graph, every_stage(graph, scheme, tp, ep, pp))


def every_stage(graph: LayerGraph, scheme: Scheme, tp: int, ep: int, pp: int) -> list[PipelineStage]:
    """What one device of each pipeline stage holds. A tied head on another stage holds a table of its own."""
    table = _layer_table(graph, scheme, tp, ep)
    result = []
    for index, layers in enumerate(split_layers(graph.num_layers, pp)):
        size = _stage_size(table, layers, _layer_classes(graph), scheme.depends_on_layer)
        if index == 0:
            size = _sum(size, table.before)
        if index == pp - 1:
            size = _sum(size, table.after)
            if pp > 1 and graph.model.text.head.tied:
                size = _sum(size, table.embedding)
        counts = _cache_counts(graph, layers)
        result.append(PipelineStage(index, size[0], size[1], layers, counts, index == 0, index == pp - 1))
    return result


def _stage_size(table: _LayerTable, layers: tuple[int, ...], classes: tuple[int, ...], each: bool) -> _Size:
    if each:
        return _total(table.layers[layer] for layer in layers)
    counts = Counter(classes[layer] for layer in layers)
    of_class = {classes[layer]: table.layers[layer] for layer in layers}
    return _total(_times(of_class[number], count) for number, count in counts.items())


def _distinct(graph: LayerGraph, all_stages: list[PipelineStage]) -> tuple[PipelineStage, ...]:
    """Of the stages with equal layers and ends the one with the heaviest weights, among equals the foremost."""
    classes = _layer_classes(graph)
    heaviest: dict[tuple[object, bool, bool], PipelineStage] = {}
    for stage in all_stages:
        key = (tuple(sorted(classes[layer] for layer in stage.layers)), stage.first, stage.last)
        if key not in heaviest or stage.weights.total_bytes > heaviest[key].weights.total_bytes:
            heaviest[key] = stage
    return tuple(heaviest.values())


@kept_with(maxsize=64)
def _layer_classes(graph: LayerGraph) -> tuple[int, ...]:
    """A number per layer of the language model, the same for layers of the same declarations."""
    declared = [tuple(id(node.declaration) for node in nodes) for nodes in _nodes_by_layer(graph)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(declared))}
    return tuple(numbers[key] for key in declared)


def _cache_counts(graph: LayerGraph, layers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(index of the group in `graph.groups`, layers of it in this stage) for every group that caches."""
    caching = _caching_groups_by_layer(graph)
    counts = Counter(index for layer in layers for index in caching[layer])
    return tuple(sorted(counts.items()))


@kept_with(maxsize=64)
def _caching_groups_by_layer(graph: LayerGraph) -> tuple[tuple[int, ...], ...]:
    """For each layer of the language model the indices of the groups of its caching nodes."""
    by_layer: list[tuple[int, ...]] = [()] * graph.num_layers
    for index, group in enumerate(graph.groups):
        if group.declaration.cache and group.first.scope == "text":
            for node in group.nodes:
                assert node.layer is not None, "only layers of blocks cache"
                by_layer[node.layer] += (index,)
    return tuple(by_layer)
