"""Bytes on the fullest device of a layout: every pipeline stage, by the rules of `l4spec.sharding`."""

from collections import Counter
from collections.abc import Iterable
from functools import reduce
from itertools import chain
from math import prod
from typing import NamedTuple

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.quantization.packing import StoredSize
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import MESH_AXIS, chunks_of_stages, is_after_blocks, layout_for, shard_size
from planners.counts.weights import Scheme, stored_size


class PipelineStage(NamedTuple):
    """One pipeline stage on one device: weight bytes, its layers' cache rows, and which ends of the model it holds."""

    index: int  # type: ignore[assignment]  # tuple has a method of this name
    weights: StoredSize
    num_params: int
    layers: tuple[int, ...]
    cache_counts: tuple[tuple[int, int], ...]
    first: bool
    last: bool
    chunks: tuple[tuple[int, ...], ...]
    """Its layers by virtual stage: one chunk, unless the pipeline is interleaved."""


class _LayerTable(NamedTuple):
    """Device bytes and parameters of every text layer, and of the layers before the first and after the last."""

    layers: tuple["_Size", ...]
    before: "_Size"
    after: "_Size"
    embedding: "_Size"


@kept_with(maxsize=1024)
def _layer_table(graph: LayerGraph, scheme: Scheme, tp: int, ep: int) -> _LayerTable:
    layout, classes = Layout(tp=tp, ep=ep), _layer_classes(graph)
    sizes: dict[int, _Size] = {}
    layers = []
    for layer, nodes in enumerate(nodes_by_layer(graph)):
        key = layer if scheme.depends_on_layer else classes[layer]  # equal layers are sized once
        if key not in sizes:
            sizes[key] = _total(
                _node_size(graph, node, scheme, layout) for node in nodes if node.declaration.parameters
            )
        layers.append(sizes[key])
    return _LayerTable(tuple(layers), *_ends(graph, scheme, tp))


@kept_with(maxsize=256)
def _ends(graph: LayerGraph, scheme: Scheme, tp: int) -> tuple["_Size", "_Size", "_Size"]:
    """Sizes before the first block, after the last, and of the embedding; ep cuts only blocks of the language model."""
    before = after = embedding = _NOTHING
    for group in graph.groups:
        if group.first.scope == "vision" or group.first.layer is None:
            size = _times(_cut_size(graph, group.first, scheme, Layout(tp=tp)), group.count)
            if is_after_blocks(group.first):
                after = _sum(after, size)
            else:
                before = _sum(before, size)
                embedding = size if group.first.role == "embedding" else embedding
    return before, after, embedding


@kept_with(maxsize=64)
def nodes_by_layer(graph: LayerGraph) -> tuple[tuple[LayerNode, ...], ...]:
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
    """Device bytes and parameters of a layer in a block; equal ones are sized once, for every ep if none cuts them."""
    alike = node.id if scheme.depends_on_layer else _foremost(graph)[id(node.declaration)]
    ep = layout.ep if id(node.declaration) in _cut_by_ep(graph) else 1
    return _size_of(graph, alike, scheme, layout.tp, ep)


@kept_with(maxsize=64)
def _foremost(graph: LayerGraph) -> dict[int, str]:
    """The foremost node of each declaration in blocks of the language model, by the declaration's identity."""
    nodes = (node for layer in nodes_by_layer(graph) for node in layer)
    foremost: dict[int, str] = {}
    for node in nodes:
        foremost.setdefault(id(node.declaration), node.id)
    return foremost


@kept_with(maxsize=64)
def _cut_by_ep(graph: LayerGraph) -> frozenset[int]:
    """Identities of the declarations that have an axis which ep cuts."""
    declarations = (group.declaration for group in graph.groups)
    return frozenset(
        id(declaration)
        for declaration in declarations
        if any(MESH_AXIS.get(dim.axis) == "ep" for parameter in declaration.parameters for dim in parameter.dims)
    )


@kept_with(maxsize=4096)
def _size_of(graph: LayerGraph, node_id: str, scheme: Scheme, tp: int, ep: int) -> _Size:
    return _cut_size(graph, graph.by_id[node_id], scheme, Layout(tp=tp, ep=ep))


def _cut_size(graph: LayerGraph, node: LayerNode, scheme: Scheme, layout: Layout) -> _Size:
    cut, count = layout_for(node, layout), 0
    payload = scales = zero_points = 0
    for parameter in node.declaration.parameters:
        if not parameter.tied_to:
            shape = tuple(shard_size(dim, cut) for dim in parameter.dims)
            size = stored_size(graph, node, parameter, shape, scheme)
            payload, scales = payload + size.payload_bytes, scales + size.scale_bytes
            zero_points += size.zero_point_bytes
            count += prod(shape)
    return StoredSize(payload, scales, zero_points), count


@kept_with(maxsize=1024)
def stages(
    graph: LayerGraph, scheme: Scheme, tp: int, ep: int, pp: int, virtual_stages: int = 1
) -> tuple[PipelineStage, ...]:
    """Of the pipeline stages, as `every_stage` gives them, those that differ.

    Of the stages with equal layers and ends the one with the heaviest weights, among equals the foremost.
    """
    cut = _cut(graph, pp, virtual_stages) if scheme.depends_on_layer else _different(graph, pp, virtual_stages)
    heaviest: dict[object, PipelineStage] = {}
    for part, stage in zip(cut, _filled(graph, scheme, tp, ep, cut), strict=True):
        if part.kind not in heaviest or stage.weights.total_bytes > heaviest[part.kind].weights.total_bytes:
            heaviest[part.kind] = stage
    return tuple(heaviest.values())


def every_stage(
    graph: LayerGraph, scheme: Scheme, tp: int, ep: int, pp: int, virtual_stages: int = 1
) -> list[PipelineStage]:
    """The pipeline stages, as one device of each has them. A tied head on another stage has a table of its own."""
    return _filled(graph, scheme, tp, ep, _cut(graph, pp, virtual_stages))


class _Part(NamedTuple):
    """Layers of a pipeline stage, independent of precision and of the division of its layers.

    `class_counts` pairs the first layer of each class (`_layer_classes`) with the number of layers of that class.
    """

    index: int  # type: ignore[assignment]  # tuple has a method of this name
    layers: tuple[int, ...]
    class_counts: tuple[tuple[int, int], ...]
    cache_counts: tuple[tuple[int, int], ...]
    first: bool
    last: bool
    chunks: tuple[tuple[int, ...], ...]
    chunk_classes: tuple[object, ...]
    """The same for chunks with equal layers; empty for a single chunk."""

    @property
    def kind(self) -> object:
        """The same for parts with equal layers and ends."""
        return frozenset(self.class_counts), self.first, self.last, self.chunk_classes


@kept_with(maxsize=1024)
def _cut(graph: LayerGraph, pp: int, virtual_stages: int) -> tuple[_Part, ...]:
    """The parts of the model that `pp` stages hold."""
    classes = _layer_classes(graph)

    def counted(layers: tuple[int, ...]) -> Counter[int]:
        return Counter(classes[layer] for layer in layers)

    parts = []
    for index, chunks in enumerate(chunks_of_stages(graph.num_layers, pp, virtual_stages)):
        layers = tuple(chain.from_iterable(chunks))
        part = _Part(
            index=index,
            layers=layers,
            class_counts=tuple(counted(layers).items()),
            cache_counts=cache_counts(graph, layers),
            first=index == 0,
            last=index == pp - 1,
            chunks=chunks,
            chunk_classes=tuple(frozenset(counted(c).items()) for c in chunks) if virtual_stages > 1 else (),
        )
        parts.append(part)
    return tuple(parts)


@kept_with(maxsize=1024)
def _different(graph: LayerGraph, pp: int, virtual_stages: int) -> tuple[_Part, ...]:
    """Of the parts with equal layers and ends the foremost."""
    foremost: dict[object, _Part] = {}
    for part in _cut(graph, pp, virtual_stages):
        foremost.setdefault(part.kind, part)
    return tuple(foremost.values())


def _filled(graph: LayerGraph, scheme: Scheme, tp: int, ep: int, cut: tuple[_Part, ...]) -> list[PipelineStage]:
    """The stages of these parts in a precision, divided."""
    table = _layer_table(graph, scheme, tp, ep)
    result = []
    for part in cut:
        weights, num_params = _part_size(graph, table, part, each=scheme.depends_on_layer)
        ends = (part.first, part.last, part.chunks)
        result.append(PipelineStage(part.index, weights, num_params, part.layers, part.cache_counts, *ends))
    return result


def _part_size(graph: LayerGraph, table: _LayerTable, part: _Part, *, each: bool) -> _Size:
    if each:
        size = _total(table.layers[layer] for layer in part.layers)
    else:
        size = _total(_times(table.layers[layer], count) for layer, count in part.class_counts)
    if part.first:
        size = _sum(size, table.before)
    if part.last:
        size = _sum(size, table.after)
        if not part.first and graph.model.text.head.tied:
            size = _sum(size, table.embedding)
    return size


@kept_with(maxsize=64)
def _layer_classes(graph: LayerGraph) -> tuple[int, ...]:
    """For each layer of the language model the foremost layer of the same declarations."""
    foremost: dict[tuple[int, ...], int] = {}
    declared = (tuple(id(node.declaration) for node in nodes) for nodes in nodes_by_layer(graph))
    return tuple(foremost.setdefault(key, layer) for layer, key in enumerate(declared))


def cache_counts(graph: LayerGraph, layers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
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
