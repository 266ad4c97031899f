"""`l4spec.distribute`: one rank's part of a model, which may be on the meta device."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.initialize import fill
from l4spec.runtime.parallel.mesh import Mesh, make_mesh
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.rank import (
    check_rank,
    form_groups,
    module_on_rank,
    narrowed,
    nodes_on_rank,
    own_nodes,
    require_legal,
    shards_of,
    share_biases,
    summed_gradients,
)
from l4spec.runtime.parallel.sequence import PrefillModel
from l4spec.runtime.parallel.training import local_of, local_region, shard_over_data
from l4spec.sharding.layout import Layout

if TYPE_CHECKING:
    from l4spec.runtime.model import Model


def distribute(
    model: "Model",
    layout: Layout,
    *,
    device: torch.device | str | None = None,
    seed: int | None = 0,
    train: bool = False,
    sequence_parallel: bool = False,
) -> RankModel:
    """This rank's part of `model` under `layout`, in a world of as many ranks as the layout has.

    A model on the meta device is materialized straight into shards on `device` (default cpu): random weights that are
    the same for every layout, or uninitialized with `seed=None` for a checkpoint to be loaded. From a model with
    weights the rank copies its regions. With `train` the dp x ep ranks share weights, gradients and optimizer states by
    FSDP2; call `finish_backward` after each backward pass. With `sequence_parallel`, each rank of tp has a share of the
    tokens between the layers that they cut, in passes with gradients. Raises UserError with the planner's reason for a
    layout that the model does not allow, and for a world of another size.
    """
    if model.quantization is not None:
        raise UserError(f"the model is packed as {model.quantization.name}, and packed weights are not cut into shards")
    chosen = torch.device(device or ("cpu" if model.device.type == "meta" else model.device))
    mesh = make_mesh_for(model.graph, layout, chosen)
    rank = build_rank(model.graph, mesh, model.dtype, sequence_parallel=sequence_parallel)
    rank.image_token_id = model.image_token_id
    rank.checkpointing = model.checkpointing
    if train:
        shard_over_data(rank.train(), mesh, (*rank.nodes, *rank.module_nodes), rank.dtype)
    if chosen.type == "meta":
        return rank
    rank.to_empty(device=chosen)
    if model.device.type == "meta":
        materialize(rank, seed)
    else:
        take_regions(rank, model.state_dict())
    return rank


def make_mesh_for(graph: LayerGraph, layout: Layout, device: torch.device) -> Mesh:
    """The mesh of a layout that the model allows; raises before any process waits for another."""
    require_legal(graph, layout)
    return make_mesh(layout, "cpu" if device.type == "meta" else device.type)


def build_rank(graph: LayerGraph, mesh: Mesh, dtype: torch.dtype, *, sequence_parallel: bool = False) -> RankModel:
    """The model of one rank on the meta device; needs none of the others."""
    require_legal(graph, mesh.layout)
    form_groups(graph, mesh)
    nodes, shards = tuple(own_nodes(graph, mesh)), shards_of(graph, mesh)
    with torch.device("meta"):
        modules = {node.id: module_on_rank(node, mesh) for node in nodes_on_rank(graph, mesh)}
        share_biases(modules, shards, mesh)
        own = tuple(narrowed(node, mesh.layout) for node in nodes)
        kind = RankModel if mesh.layout.cp == 1 else PrefillModel
        split = sequence_parallel and mesh.layout.tp > 1
        summed = summed_gradients(modules, shards, mesh, sequence_parallel=split)
        model = kind(graph, modules, own, mesh, shards, summed)
        model.sequence_parallel = split
    model.to(dtype=dtype)
    check_rank(model, shards)
    return model.eval()


def materialize(rank: RankModel, seed: int | None) -> None:
    """Fill a rank's tensors with the values that the whole model has there."""
    if seed is not None:
        state = rank.state_dict(keep_vars=True)
        regions = ((s.node, s.parameter, local_region(state[name], s.region)) for name, s in rank.shards.items())
        fill({name: local_of(tensor) for name, tensor in state.items()}, regions, seed)


@torch.no_grad()
def take_regions(rank: RankModel, whole: dict[str, Tensor]) -> None:
    """Copy the rank's regions of tensors that are available whole."""
    for name, tensor in rank.state_dict(keep_vars=True).items():
        region = tuple(slice(run.start, run.stop) for run in local_region(tensor, rank.shards[name].region))
        local_of(tensor).copy_(whole[name][region])
