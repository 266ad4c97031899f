"""One rank's part of a model: its pipeline stage, with every tensor cut by the rule table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers import KINDS, declaration_of
from l4spec.layers.common.modules import Context, LayerModule, Linear
from l4spec.layers.common.parallel import Axis, enter, leave
from l4spec.layers.declaration import Parameter
from l4spec.runtime.build import make_module, module_of
from l4spec.runtime.parallel.mesh import Mesh
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import MESH_AXIS, Region, cuts_of, illegal_reason, layout_for, region_of, stage_of
from l4spec.sharding.token_split import token_use


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of a tensor: its layer, its declaration, and the region of the whole."""

    node: LayerNode
    parameter: Parameter
    region: Region

    @property
    def name(self) -> str:
        """The tensor's name in the model."""
        return f"{self.node.id}.{self.parameter.name}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of this rank's part."""
        return tuple(map(len, self.region))


def require_legal(graph: LayerGraph, layout: Layout) -> None:
    """Raise UserError with the planner's reason for a layout that the model does not allow."""
    if reason := illegal_reason(graph, layout):
        raise UserError(f"{layout}: {reason}")


def own_nodes(graph: LayerGraph, mesh: Mesh) -> Iterator[LayerNode]:
    """The nodes of this rank's pipeline stage."""
    stage, pp = mesh.place.pp, mesh.layout.pp
    return (node for node in graph.nodes if stage_of(graph, node, pp) == stage)


def nodes_on_rank(graph: LayerGraph, mesh: Mesh) -> Iterator[LayerNode]:
    """The nodes with tensors on this rank: those of its stage, and the embedding if a tied head is on another stage."""
    yield from own_nodes(graph, mesh)
    if graph.model.text.head.tied and 0 < mesh.place.pp == mesh.layout.pp - 1:
        yield next(node for node in graph.nodes if node.role == "embedding")


def narrowed(node: LayerNode, layout: Layout) -> LayerNode:
    """A node as a rank computes it: its part of the heads and widths, and so of the cache."""
    tp = layout_for(node, layout).tp
    spec = node.spec.narrowed(tp) if tp > 1 else node.spec
    return node if spec == node.spec else replace(node, spec=spec, declaration=declaration_of(spec, node.width))


def shards_of(graph: LayerGraph, mesh: Mesh) -> dict[str, Shard]:
    """This rank's shards, by tensor name. A tied head shares the table of the embedding."""
    shards = (
        Shard(node, parameter, region_of(node, parameter, mesh.layout, mesh.place))
        for node in nodes_on_rank(graph, mesh)
        for parameter in node.declaration.parameters
        if parameter.tied_to is None
    )
    return {shard.name: shard for shard in shards}


def module_on_rank(node: LayerNode, mesh: Mesh) -> LayerModule:
    """The module that runs a node on this rank; its outputs are those of the whole layer, on every rank."""
    kind, cut = KINDS[node.kind], layout_for(node, mesh.layout)
    degrees = {MESH_AXIS[axis]: getattr(cut, MESH_AXIS[axis]) for axis in cuts_of(node, cut)}
    if all(degree == 1 for degree in degrees.values()) and mesh.data.size == mesh.layout.cp == 1:
        return module_of(node)
    ranks, spec = mesh.ranks(cut.tp), node.spec.narrowed(cut.tp)
    if node.scope == "vision":  # its experts are whole, and so are the tiles
        ranks = replace(ranks, ep=Axis(), cp=Axis())
    if kind.parallel is None:
        module = make_module(kind.module, node.id, spec, node.width)
    else:
        module = make_module(kind.parallel, node.id, spec, node.width, ranks, cuts_of(node, cut))
    if degrees.get("tp", 1) > 1 and not module.joins_itself:
        _add_up(module, ranks.tp)
    return module


def _add_up(module: LayerModule, tp: Axis) -> None:
    """Let the ranks' outputs be added up after `module`, and their gradients before it."""

    def before(
        _: nn.Module, args: tuple[Tensor, ...], given: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        return args if _is_split(given) else tuple(enter(x, tp) for x in args), given

    def add_up(_: nn.Module, args: object, given: dict[str, Any], output: Tensor) -> Tensor:
        return output if _is_split(given) else leave(output, tp)

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.get_submodule(module.summed_at).register_forward_hook(add_up, with_kwargs=True)


def _is_split(given: Mapping[str, Any]) -> bool:
    """True if the ranks' parts of the called layer are joined elsewhere (`l4spec.runtime.parallel.tokens`)."""
    context = given.get("context")
    return isinstance(context, Context) and context.split is not None


def form_groups(graph: LayerGraph, mesh: Mesh) -> None:
    """Form the groups of ranks that layers of any stage need: every rank has to take part, in the same order."""
    for node in (group.first for group in graph.groups):
        tp = mesh.ranks(layout_for(node, mesh.layout).tp).tp
        for dim in (dim for parameter in node.declaration.parameters for dim in parameter.dims):
            if dim.axis == "kv_heads" and tp.size > dim.units:
                mesh.neighbours(tp.size // dim.units)


def summed_gradients(
    modules: dict[str, LayerModule], shards: dict[str, Shard], mesh: Mesh, *, sequence_parallel: bool
) -> dict[str, Axis]:
    """Ranks over which the gradients of a tensor are summed, by its name.

    A tensor that each tensor-parallel rank has whole, in a layer whose outputs are summed over ranks, gets on each rank
    the gradient of its part of the outputs; so does a KV head that neighbours share, and with sequence parallelism a
    norm.
    """
    axes = {}
    for name, shard in shards.items():
        if sequence_parallel and shard.node.scope == "text" and token_use(shard.node) == "own":
            axes[name] = mesh.ranks(mesh.layout.tp).tp
            continue
        if modules[shard.node.id].joins_itself:
            continue
        tp = mesh.ranks(layout_for(shard.node, mesh.layout).tp).tp
        cut = [dim for dim in shard.parameter.dims if MESH_AXIS.get(dim.axis) == "tp"]
        if tp.size > 1 and not cut and _is_cut(shard.node, mesh.layout):
            axes[name] = tp
        for dim in cut:
            if dim.axis == "kv_heads" and tp.size > dim.units:
                axes[name] = mesh.neighbours(tp.size // dim.units)
    return axes


def _is_cut(node: LayerNode, layout: Layout) -> bool:
    return any(MESH_AXIS[axis] == "tp" for axis in cuts_of(node, layout))


def share_biases(modules: dict[str, LayerModule], shards: dict[str, Shard], mesh: Mesh) -> None:
    """After a weight whose inputs are cut, let the first rank add the bias: outputs are added up."""
    for shard in shards.values():
        owner = shard.name.removesuffix(".bias")
        weight = shards.get(f"{owner}.weight")
        if owner == shard.name or weight is None:
            continue
        into = weight.parameter.dims[-1]
        axis = mesh.ranks(layout_for(shard.node, mesh.layout).tp).tp
        if MESH_AXIS.get(into.axis) == "tp" and axis.size > 1:
            linear = modules[shard.node.id].get_submodule(shard.parameter.name.removesuffix(".bias"))
            assert isinstance(linear, Linear)
            linear.bias_share = 1.0 if axis.index == 0 else 0.0


def check_rank(model: nn.Module, shards: dict[str, Shard]) -> None:
    """Compare the rank's tensors with the rule table's regions; raises TypeError naming every difference."""
    built = {name: tuple(t.shape) for name, t in model.state_dict(keep_vars=True).items()}
    declared = {name: shard.shape for name, shard in shards.items()}
    problems = [
        f"{name}: the layout gives {declared.get(name, 'nothing')}, built {built.get(name, 'nothing')}"
        for name in declared.keys() | built.keys()
        if declared.get(name) != built.get(name)
    ]
    if problems:
        raise TypeError("a rank must hold what its layout gives it:\n" + "\n".join(sorted(problems)))
