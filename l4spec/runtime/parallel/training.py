"""Training state over data-parallel ranks by FSDP2, and the gradients that tensor-parallel ranks have to add up.

Weights of a layer are gathered when it runs and gradients scattered after it (ZeRO stage 3). Each expert is on one ep
rank, so dp ranks alone shard it; everything else is sharded by dp x ep. Gradients are means over all dp x ep ranks'
losses.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from l4spec.graph.layer_graph import LayerNode
from l4spec.layers.common.parallel import Axis, sum_over
from l4spec.runtime.parallel.mesh import Mesh
from l4spec.sharding.rules import Region, layout_for
from l4spec.units import ceil_div


def shard_over_data(model: nn.Module, mesh: Mesh, nodes: Sequence[LayerNode], dtype: torch.dtype) -> None:
    """Let dp x ep ranks share the weights of every block; embedding and head belong to the whole model.

    `nodes` are the layers that this rank runs, `dtype` is the number format of their weights.
    """
    if mesh.data.size == 1:
        return
    assert mesh.data_mesh is not None
    assert mesh.device_mesh is not None
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32 if dtype.itemsize < 4 else None)
    apart = {parameter for parameter in model.parameters() if not parameter.numel()}  # FSDP cannot reduce nothing
    for node in nodes:
        if node.declaration.routed is not None and layout_for(node, mesh.layout).ep > 1:
            experts = _experts_of(model, node)
            apart |= set(experts.parameters())
            if mesh.layout.dp > 1:
                fully_shard(experts, mesh=mesh.device_mesh["dp"], mp_policy=policy)
    for block in _blocks(model, nodes):
        fully_shard(block, mesh=mesh.data_mesh, mp_policy=policy, ignored_params=apart)
    fully_shard(model, mesh=mesh.data_mesh, mp_policy=policy, ignored_params=apart)
    register_fsdp_forward_method(model, "run_stage")
    register_fsdp_forward_method(model, "run_with_modules")


def _experts_of(model: nn.Module, node: LayerNode) -> nn.Module:
    """The submodule of a mixture that holds its routed experts, by the names of the declared tensors."""
    name = next(parameter.name for parameter in node.declaration.parameters if parameter.role == "expert")
    return model.get_submodule(f"{node.id}.{name.rpartition('.')[0]}")


def _blocks(model: nn.Module, nodes: Sequence[LayerNode]) -> list[list[nn.Module]]:
    def place(node: LayerNode) -> tuple[str, int | None]:
        return (node.scope, node.layer)

    runs = [list(run) for (_, layer), run in groupby(nodes, key=place) if layer is not None]
    return [[model.get_submodule(node.id) for node in run] for run in runs]


def local_of(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_region(tensor: Tensor, region: Region) -> Region:
    """The part of a rank's `region` of a whole tensor that remains after data-parallel ranks divide its first dim."""
    if not isinstance(tensor, DTensor):
        return region
    size, index = tensor.device_mesh.size(), tensor.device_mesh.get_local_rank()
    run = ceil_div(len(region[0]), size)
    return (region[0][index * run : (index + 1) * run], *region[1:])


@torch.no_grad()
def finish_gradients(
    parameters: Iterable[tuple[str, nn.Parameter]], summed: Mapping[str, Axis], num_data_ranks: int
) -> None:
    """Add up gradients over the ranks that `summed` names; of experts, take means over data-parallel ranks too."""
    by_axis: dict[Axis, list[Tensor]] = defaultdict(list)
    for name, parameter in parameters:
        if parameter.grad is None:
            continue
        grad = local_of(parameter.grad)
        averaged = parameter.device_mesh.size() if isinstance(parameter, DTensor) else 1
        if averaged < num_data_ranks:  # experts: tokens of all ep ranks have come here
            grad *= averaged / num_data_ranks
        axis = summed.get(name)
        if axis is not None:
            by_axis[axis].append(grad)
    for axis, grads in by_axis.items():
        _sum_together(grads, axis)


def _sum_together(grads: list[Tensor], axis: Axis) -> None:
    """One collective for many small tensors."""
    flat = sum_over(torch.cat([grad.flatten() for grad in grads]), axis)
    for grad, summed in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
        grad.copy_(summed.view_as(grad))
