"""Device mesh of a layout on torch.distributed."""

from dataclasses import dataclass, field

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from l4spec.errors import UserError
from l4spec.layers.common.parallel import Axis, Ranks
from l4spec.sharding.layout import MESH_ORDER, Layout, MeshCoordinate, place_of


@dataclass(frozen=True, eq=False)
class Mesh:
    """A rank's view of the mesh; without `device_mesh` the rank is built alone and cannot send.

    `data_mesh` is dp and ep as one axis.
    """

    layout: Layout
    rank: int
    device_mesh: DeviceMesh | None = None
    data_mesh: DeviceMesh | None = None
    _narrow: dict[int, Axis] = field(default_factory=dict)
    _repeats: dict[int, Axis] = field(default_factory=dict)

    @property
    def place(self) -> MeshCoordinate:
        """Coordinate of this rank."""
        return place_of(self.layout, self.rank)

    def axis(self, name: str) -> Axis:
        """One axis of the mesh: `pp`, `dp`, `ep`, `cp` or `tp`."""
        size, index = getattr(self.layout, name), getattr(self.place, name)
        device_mesh = None if self.device_mesh is None else self.device_mesh[name]
        return Axis(size, index, _group_of(device_mesh) if size > 1 else None)

    @property
    def data(self) -> Axis:
        """The ranks among which sequences are divided: dp and ep as one axis."""
        layout, place = self.layout, self.place
        size = layout.dp * layout.ep
        return Axis(size, place.dp * layout.ep + place.ep, _group_of(self.data_mesh) if size > 1 else None)

    def ranks(self, tp: int | None = None) -> Ranks:
        """Mesh axes for layers. With `tp` below the layout's, neighbours have the same shards (of a vision tower)."""
        whole = self.axis("tp")
        if tp is None or tp == self.layout.tp:
            return Ranks(whole, self.axis("ep"), self.data, self.axis("cp"))
        return Ranks(self._narrowed(whole, tp), self.axis("ep"), self.data, self.axis("cp"))

    def groups(self) -> dict[str, dist.ProcessGroup]:
        """The groups that this rank sends in, by axis; more of one axis are `axis:n`, of dp and ep the `data_axis`."""
        by_axis = {axis: self.axis(axis).group for axis in MESH_ORDER}
        by_axis |= {f"{self.layout.data_axis}:data": self.data.group}
        parts = (*self._repeats.values(), *self._narrow.values())
        by_axis |= {f"tp:{number}": axis.group for number, axis in enumerate(parts)}
        return {name: group for name, group in by_axis.items() if group is not None}

    def neighbours(self, count: int) -> Axis:
        """The `count` neighbouring tensor-parallel ranks that hold the same KV head."""
        if count not in self._repeats:
            tp, first = self.layout.tp, range(0, self.layout.num_devices, count)
            assert tp % count == 0
            groups = [list(range(start, start + count)) for start in first]
            group = None if self.device_mesh is None else _own_of(groups)
            self._repeats[count] = Axis(count, self.place.tp % count, group)
        return self._repeats[count]

    def _narrowed(self, whole: Axis, tp: int) -> Axis:
        if tp == 1:
            return Axis()
        if tp not in self._narrow:
            repeats = whole.size // tp
            group = None if self.device_mesh is None else _subgroup(self, repeats)
            self._narrow[tp] = Axis(tp, whole.index // repeats, group)
        return self._narrow[tp]


def _group_of(device_mesh: DeviceMesh | None) -> dist.ProcessGroup | None:
    return None if device_mesh is None else device_mesh.get_group()


def _subgroup(mesh: Mesh, repeats: int) -> dist.ProcessGroup:
    """Of each tensor-parallel group, the ranks that hold different shards when each is on `repeats` neighbours."""
    tp = mesh.layout.tp
    firsts = range(0, mesh.layout.num_devices, tp)
    groups = [[first + k for k in range(offset, tp, repeats)] for first in firsts for offset in range(repeats)]
    return _own_of(groups)


def _own_of(groups: list[list[int]]) -> dist.ProcessGroup:
    """The group of this rank; every rank must create the same groups in the same order."""
    own: dist.ProcessGroup = dist.new_subgroups_by_enumeration(groups)[0]  # type: ignore[no-untyped-call]
    return own


def make_mesh(layout: Layout, device_type: str = "cpu") -> Mesh:
    """The mesh of all running ranks; torch.distributed must have been started (torchrun, `init_process_group`).

    Raises UserError when the layout needs another number of ranks than there are.
    """
    if layout.num_devices == 1 and not dist.is_initialized():
        return Mesh(layout, 0)
    if not dist.is_initialized():
        raise UserError(
            f"{layout} needs {layout.num_devices} processes, and torch.distributed has not been started",
            hint=f"run under torchrun --nproc-per-node {layout.num_devices}, or `l4spec run`",
        )
    world = dist.get_world_size()
    if world != layout.num_devices:
        product = " x ".join(f"{axis}{getattr(layout, axis)}" for axis in MESH_ORDER)
        raise UserError(f"{product} makes {layout.num_devices} ranks, and {world} are running")
    shape = tuple(getattr(layout, axis) for axis in MESH_ORDER)
    device_mesh = init_device_mesh(device_type, shape, mesh_dim_names=MESH_ORDER)
    return Mesh(layout, dist.get_rank(), device_mesh, device_mesh[("dp", "ep")]._flatten("data"))
