"""Sharding rules: which axes a layout cuts, and which region of a tensor each rank holds.

Devices form a mesh pp x dp x ep x cp x tp. A tensor is cut along its logical axes by one rule table; attention and
other non-expert weights are repeated over ep, dp and cp, and sequences are divided among the dp * ep ranks, their
tokens among cp (`l4spec.sharding.sequence`). The planner divides by these rules, and the runtime cuts by them.
"""

from functools import lru_cache
from math import gcd

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Dim, Parameter
from l4spec.sharding.layout import Layout, MeshCoordinate
from l4spec.sharding.sequence import undivided_reason
from l4spec.units import ceil_div

MESH_AXIS = {
    "heads": "tp",
    "kv_heads": "tp",
    "ffn": "tp",
    "expert_ffn": "tp",
    "vocab": "tp",
    "projected": "tp",
    "experts": "ep",
}
"""Logical axis to mesh axis; an axis that is not named is whole on every device."""
_MUST_DIVIDE = {
    "heads": "query heads",
    "kv_heads": "KV heads",
    "experts": "experts",
    "ffn": "FFN width",
    "expert_ffn": "expert width",
}
"""Axes of the language model that must be divided evenly, and their names in messages."""


def degree_of(dim: Dim, layout: Layout) -> int:
    """Into how many shards a layout cuts this dim."""
    return int(getattr(layout, MESH_AXIS[dim.axis])) if dim.axis in MESH_AXIS else 1


def shard_size(dim: Dim, layout: Layout) -> int:
    """Elements of the largest shard: whole pieces only, so uneven ones are rounded up and short axes are repeated."""
    degree = degree_of(dim, layout)
    return ceil_div(dim.units, degree) * (dim.size // dim.units)


def shard_ranges(dim: Dim, layout: Layout) -> tuple[range, ...]:
    """The elements of this dim that each rank of its mesh axis holds, in order of ranks.

    Runs of whole pieces, the last ones shorter or empty if the number is uneven. With fewer KV heads than ranks,
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
    shards, the most that divide both, and each shard is repeated. Its experts are whole on every rank: ranks whose
    sequences have no images do not run it, and could not take part in an exchange.
    """
    if node.scope == "text" or layout.tp == layout.ep == 1:
        return layout
    if "tp" in node.declaration.uncut:
        return Layout()
    dims = [dim for parameter in node.declaration.parameters for dim in parameter.dims]
    return Layout(tp=gcd(layout.tp, *(dim.units for dim in dims if MESH_AXIS.get(dim.axis) == "tp")))


def is_after_blocks(node: LayerNode) -> bool:
    """True if a node follows the last block of the language model: the joined streams, final norm and head."""
    return node.scope == "text" and node.layer is None and node.role in ("streams_join", "norm", "head")


_ENDS = 2
"""Chunks of an interleaved pipeline without a block: the embedding and the head may count as one each, as in Megatron
(`account_for_embedding_in_pipeline_split`), which ran Llama-3.1-405B's 126 blocks in 128 chunks."""


@kept_with(maxsize=1024)
def illegal_reason(
    graph: LayerGraph, layout: Layout, *, uneven_experts: bool = False, virtual_stages: int = 1, trains: bool = False
) -> str | None:
    """Reason why the model does not allow this layout, or None. KV heads may be repeated and the vocabulary uneven.

    Our runtime gives every rank as many experts; with `uneven_experts` some ranks may have one more than others.
    `trains`: a sequence may be divided among ranks (cp) of several pipeline stages.
    """
    if layout.pp * virtual_stages > graph.num_layers + (_ENDS if virtual_stages > 1 else 0):
        chunks = f" x {virtual_stages} virtual stages" if virtual_stages > 1 else ""
        return f"pp={layout.pp}{chunks} exceeds the {graph.num_layers} layers"
    for axis, units in _text_axes(graph):
        degree = getattr(layout, MESH_AXIS[axis])
        if axis == "kv_heads":
            if units % degree and degree % units:
                return f"tp={degree} neither divides the {units} KV heads nor is a multiple of them"
        elif axis == "experts" and uneven_experts and degree <= units:
            continue
        elif units % degree:
            return f"{MESH_AXIS[axis]}={degree} does not divide {units} ({_MUST_DIVIDE[axis]})"
    if layout.ep > 1 and not any(axis == "experts" for axis, _ in _text_axes(graph)):
        return f"ep={layout.ep} needs experts, and the model has none"
    return (
        _uncut_reason(graph, layout)
        or undivided_reason(graph, layout, trains=trains)
        or _unseen_reason(graph, layout)
        or _far_from_tower(graph, layout, virtual_stages)
    )


def _uncut_reason(graph: LayerGraph, layout: Layout) -> str | None:
    """Reason why a layer of the language model must stay whole along an axis of the mesh, or None."""
    for node in (group.first for group in graph.groups if group.first.scope == "text"):
        for axis, reason in node.declaration.uncut.items():
            degree = getattr(layout, axis)
            if degree > 1:
                return f"{axis}={degree} would cut {node.label}: {reason}"
    return None


def _unseen_reason(graph: LayerGraph, layout: Layout) -> str | None:
    """Reason why the vision tower cannot run with its images divided among ranks, or None."""
    if layout.dp * layout.ep > 1:
        for node in (group.first for group in graph.groups if group.first.scope == "vision"):
            routed = node.declaration.routed
            if routed is not None and routed.capacity_factor is not None:
                return (
                    f"dp={layout.dp} x ep={layout.ep} divides images among ranks, and {node.id} counts those of all "
                    "(capacity_factor)"
                )
    return None


def _far_from_tower(graph: LayerGraph, layout: Layout, virtual_stages: int) -> str | None:
    """Reason why a block of the text cannot take the tower's vectors, or None: both must be on the first stage."""
    vision = graph.model.vision
    if vision is None or vision.deepstack is None or layout.pp == 1:
        return None
    num_taking = len(vision.deepstack.blocks)
    if _stage_by_layer(graph.num_layers, layout.pp * virtual_stages)[num_taking - 1] == 0:
        return None
    return f"pp={layout.pp} parts the vision tower from block {num_taking - 1} of the text, which takes image vectors"


@kept_with(maxsize=64)
def _text_axes(graph: LayerGraph) -> tuple[tuple[str, int], ...]:
    """Every (axis, pieces) of the language model that a layout cuts and that must divide, heads first."""
    axes = {
        (dim.axis, dim.units)
        for group in graph.groups
        if group.first.scope == "text"
        for parameter in group.declaration.parameters
        for dim in parameter.dims
        if dim.axis in _MUST_DIVIDE
    }
    order = list(_MUST_DIVIDE)
    return tuple(sorted(axes, key=lambda pair: (order.index(pair[0]), pair[1])))


def split_layers(num_layers: int, pp: int) -> tuple[tuple[int, ...], ...]:
    """Layers of each stage: equal runs; the rest goes one each to the stages before the last, late ones first."""
    base, rest = divmod(num_layers, pp)
    sizes = [base + (1 if pp - 1 - rest <= stage < pp - 1 else 0) for stage in range(pp)]
    starts = [sum(sizes[:stage]) for stage in range(pp)]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))


def chunks_of_stages(num_layers: int, pp: int, virtual_stages: int = 1) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Layers of each chunk of each stage: the i-th of stage s is run i * pp + s of all (arXiv:2104.04473)."""
    runs = split_layers(num_layers, pp * virtual_stages)
    return tuple(runs[stage::pp] for stage in range(pp))


Region = tuple[range, ...]
"""A device's part of a tensor: a run of elements along each of its dims."""


@lru_cache(maxsize=64)
def _stage_by_layer(num_layers: int, pp: int) -> tuple[int, ...]:
    return tuple(stage for stage, layers in enumerate(split_layers(num_layers, pp)) for _ in layers)


def stage_of(graph: LayerGraph, node: LayerNode, pp: int, virtual_stages: int = 1) -> int:
    """The pipeline stage that a node runs on; vision and embedding on the first, nodes after the blocks on the last."""
    if node.module is not None:
        return pp - 1
    if node.scope == "text" and node.layer is not None:
        return _stage_by_layer(graph.num_layers, pp * virtual_stages)[node.layer] % pp
    return pp - 1 if is_after_blocks(node) else 0


def index_along(axis: str, layout: Layout, place: MeshCoordinate, degree: int) -> int:
    """This rank's shard among the `degree` along a mesh axis; fewer shards than ranks are repeated by neighbours."""
    index: int = getattr(place, axis)
    size: int = getattr(layout, axis)
    return index * degree // size


def region_of(node: LayerNode, parameter: Parameter, layout: Layout, place: MeshCoordinate) -> Region:
    """Region of a tensor of this node on the rank at `place`."""
    cut = layout_for(node, layout)
    return tuple(
        shard_ranges(dim, cut)[index_along(MESH_AXIS[dim.axis], layout, place, degree_of(dim, cut))]
        if dim.axis in MESH_AXIS
        else range(dim.size)
        for dim in parameter.dims
    )


def cuts_of(node: LayerNode, layout: Layout) -> dict[str, tuple[range, ...]]:
    """For every logical axis of a node that some layout cuts, the runs that the ranks of its mesh axis hold."""
    cut = layout_for(node, layout)
    dims = [dim for parameter in node.declaration.parameters for dim in parameter.dims if dim.axis in MESH_AXIS]
    return {dim.axis: shard_ranges(dim, cut) for dim in dims}
