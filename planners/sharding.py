"""How a model is divided among devices: which layouts its axes allow, and what the fullest device holds.

Devices form a mesh pp x dp x ep x tp. A tensor is cut along its logical axes by one rule table; attention and other
non-expert weights are repeated over ep and dp, and sequences are divided among the dp * ep ranks.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import gcd

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Dim, Parameter
from planners.plan_types import Layout
from planners.quantization import StoredSize
from planners.weights import Scheme, stored_size

MESH_AXIS = {
    "heads": "tp",
    "kv_heads": "tp",
    "ffn": "tp",
    "expert_ffn": "tp",
    "vocab": "tp",
    "projected": "tp",
    "experts": "ep",
}
"""Logical axis to mesh axis; an axis that is not named is held whole by every device."""
_MUST_DIVIDE = {
    "heads": "query heads",
    "kv_heads": "KV heads",
    "experts": "experts",
    "ffn": "FFN width",
    "expert_ffn": "expert width",
}
"""Axes of the language model that are never cut unevenly, and what to call them."""


def degree_of(dim: Dim, layout: Layout) -> int:
    """Into how many shards a layout cuts this dim."""
    return int(getattr(layout, MESH_AXIS[dim.axis])) if dim.axis in MESH_AXIS else 1


def shard_size(dim: Dim, layout: Layout) -> int:
    """Elements of the largest shard: whole pieces only, so uneven ones are rounded up and short axes are repeated."""
    degree = degree_of(dim, layout)
    return -(-dim.units // degree) * (dim.size // dim.units)


def shard_ranges(dim: Dim, layout: Layout) -> tuple[range, ...]:
    """The elements of this dim that each rank of its mesh axis holds, in order of ranks.

    Runs of whole pieces, the last ones shorter or empty where the number is uneven. With fewer KV heads than ranks,
    neighbouring ranks hold the same one.
    """
    degree, piece = degree_of(dim, layout), dim.size // dim.units
    if dim.axis == "kv_heads" and degree > dim.units:
        heads = (rank * dim.units // degree for rank in range(degree))
        return tuple(range(head * piece, (head + 1) * piece) for head in heads)
    run = shard_size(dim, layout)
    return tuple(range(min(rank * run, dim.size), min((rank + 1) * run, dim.size)) for rank in range(degree))


def shard_shape(node: LayerNode, parameter: Parameter, layout: Layout) -> tuple[int, ...]:
    """Shape of the largest shard of a tensor."""
    layout = layout_for(node, layout)
    return tuple(shard_size(dim, layout) for dim in parameter.dims)


def layout_for(node: LayerNode, layout: Layout) -> Layout:
    """The layout by which a node is cut.

    tp is chosen for the language model. A vision layer whose heads or widths it does not divide is cut into fewer
    shards, the most that divide both, and each shard is repeated.
    """
    if node.scope == "text" or layout.tp == 1:
        return layout
    dims = [dim for parameter in node.declaration.parameters for dim in parameter.dims]
    tp = gcd(layout.tp, *(dim.units for dim in dims if MESH_AXIS.get(dim.axis) == "tp"))
    return layout if tp == layout.tp else Layout(tp=tp, ep=layout.ep)


def stands_behind(node: LayerNode) -> bool:
    """Whether a node stands behind the last block of the language model: the final norm and the head."""
    return node.scope == "text" and node.layer is None and node.role in ("norm", "head")


def illegal_reason(graph: LayerGraph, layout: Layout) -> str | None:
    """Why the model does not allow this layout, or None. KV heads may be repeated and the vocabulary uneven."""
    if layout.pp > graph.num_layers:
        return f"pp={layout.pp} exceeds the {graph.num_layers} layers"
    for axis, units in _text_axes(graph):
        degree = getattr(layout, MESH_AXIS[axis])
        if axis == "kv_heads":
            if units % degree and degree % units:
                return f"tp={degree} neither divides the {units} KV heads nor is a multiple of them"
        elif units % degree:
            return f"{MESH_AXIS[axis]}={degree} does not divide {units} ({_MUST_DIVIDE[axis]})"
    if layout.ep > 1 and not any(axis == "experts" for axis, _ in _text_axes(graph)):
        return f"ep={layout.ep} needs experts, and the model has none"
    return None


@lru_cache(maxsize=64)
def _text_axes(graph: LayerGraph) -> tuple[tuple[str, int], ...]:
    """Every (axis, pieces) of the language model that a layout cuts and that must divide, heads first."""
    found = {
        (dim.axis, dim.units)
        for group in graph.groups
        if group.first.scope == "text"
        for parameter in group.declaration.parameters
        for dim in parameter.dims
        if dim.axis in _MUST_DIVIDE
    }
    order = list(_MUST_DIVIDE)
    return tuple(sorted(found, key=lambda pair: (order.index(pair[0]), pair[1])))


@lru_cache(maxsize=256)
def candidate_layouts(num_devices: int) -> tuple[Layout, ...]:
    """Every way to write `num_devices` as tp * ep * pp * dp."""
    divisors = _divisors(num_devices)
    return tuple(
        Layout(tp=tp, ep=ep, pp=pp, dp=num_devices // (tp * ep * pp))
        for tp in divisors
        for ep in divisors
        if num_devices % (tp * ep) == 0
        for pp in divisors
        if num_devices % (tp * ep * pp) == 0
    )


def _divisors(n: int) -> list[int]:
    low = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*low, *(n // d for d in low)})


@dataclass(frozen=True, slots=True)
class Stage:
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
    """Device bytes and parameters of every text layer, of what stands before the first, and behind the last."""

    layers: tuple["_Size", ...]
    before: "_Size"
    behind: "_Size"
    embedding: "_Size"


@lru_cache(maxsize=2048)
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
    before = behind = embedding = _NOTHING
    for group in graph.groups:
        if group.first.scope == "vision" or group.first.layer is None:
            size = _times(_node_size(graph, group.first, scheme, layout), group.count)
            if stands_behind(group.first):
                behind = _sum(behind, size)
            else:
                before = _sum(before, size)
                embedding = size if group.first.role == "embedding" else embedding
    return _LayerTable(tuple(layers), before, behind, embedding)


@lru_cache(maxsize=64)
def _nodes_by_layer(graph: LayerGraph) -> tuple[tuple[LayerNode, ...], ...]:
    """The nodes of each layer of the language model."""
    found: list[list[LayerNode]] = [[] for _ in range(graph.num_layers)]
    for node in graph.nodes:
        if node.scope == "text" and node.layer is not None:
            found[node.layer].append(node)
    return tuple(map(tuple, found))


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
            count += _product(shape)
    return total, count


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


@lru_cache(maxsize=4096)
def stages(graph: LayerGraph, scheme: Scheme, tp: int, ep: int, pp: int) -> tuple[Stage, ...]:
    """What one device of each pipeline stage holds. A tied head on another stage holds a table of its own."""
    table = _layer_table(graph, scheme, tp, ep)
    result = []
    for index, layers in enumerate(split_layers(graph.num_layers, pp)):
        size = _stage_size(table, layers, _layer_classes(graph), scheme.depends_on_layer)
        if index == 0:
            size = _sum(size, table.before)
        if index == pp - 1:
            size = _sum(size, table.behind)
            if pp > 1 and graph.model.text.head.tied:
                size = _sum(size, table.embedding)
        counts = _cache_counts(graph, layers)
        result.append(Stage(index, size[0], size[1], layers, counts, index == 0, index == pp - 1))
    return _distinct(graph, result)


def _stage_size(table: _LayerTable, layers: tuple[int, ...], classes: tuple[int, ...], each: bool) -> _Size:
    if each:
        return _total(table.layers[layer] for layer in layers)
    counts = Counter(classes[layer] for layer in layers)
    of_class = {classes[layer]: table.layers[layer] for layer in layers}
    return _total(_times(of_class[number], count) for number, count in counts.items())


def _distinct(graph: LayerGraph, found: list[Stage]) -> tuple[Stage, ...]:
    """Of the stages with equal layers and ends the one with the heaviest weights, among equals the foremost."""
    classes = _layer_classes(graph)
    heaviest: dict[tuple[object, bool, bool], Stage] = {}
    for stage in found:
        key = (tuple(sorted(classes[layer] for layer in stage.layers)), stage.first, stage.last)
        if key not in heaviest or stage.weights.total_bytes > heaviest[key].weights.total_bytes:
            heaviest[key] = stage
    return tuple(heaviest.values())


@lru_cache(maxsize=64)
def _layer_classes(graph: LayerGraph) -> tuple[int, ...]:
    """A number per layer of the language model, the same for layers of the same declarations."""
    declared = [tuple(id(node.declaration) for node in nodes) for nodes in _nodes_by_layer(graph)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(declared))}
    return tuple(numbers[key] for key in declared)


def split_layers(num_layers: int, pp: int) -> tuple[tuple[int, ...], ...]:
    """Layers of each stage: equal runs; what is left over goes one each to the stages before the last, from behind."""
    base, rest = divmod(num_layers, pp)
    sizes = [base + (1 if pp - 1 - rest <= stage < pp - 1 else 0) for stage in range(pp)]
    starts = [sum(sizes[:stage]) for stage in range(pp)]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))


def _cache_counts(graph: LayerGraph, layers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(index of the group in `graph.groups`, layers of it in this stage) for every group that caches."""
    caching = _caching_groups_by_layer(graph)
    counts = Counter(index for layer in layers for index in caching[layer])
    return tuple(sorted(counts.items()))


@lru_cache(maxsize=64)
def _caching_groups_by_layer(graph: LayerGraph) -> tuple[tuple[int, ...], ...]:
    """For each layer of the language model the indices of the groups of its caching nodes."""
    found: list[tuple[int, ...]] = [()] * graph.num_layers
    for index, group in enumerate(graph.groups):
        if group.declaration.cache and group.first.scope == "text":
            for node in group.nodes:
                assert node.layer is not None, "only layers of blocks cache"
                found[node.layer] += (index,)
    return tuple(found)
