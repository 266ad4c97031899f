"""Which regions of which tensors are written and read, as torch.distributed.checkpoint asks for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from l4spec.runtime.parallel.checkpoints.local_shards import Held, chunks_of
from l4spec.sharding.rules import Region

CHUNK_BYTES = 1 << 26
"""A tensor is written in pieces of at most this size: a reader takes whole pieces into memory."""


@dataclass(frozen=True, slots=True)
class Ours:
    """What a rank hands to torch.distributed.checkpoint: one object under one name, the same on every rank."""

    held: Mapping[str, Held]

    def state(self) -> dict[str, Any]:
        """The state that a planner of this file is set up with."""
        return {"held": self}


class RegionSavePlanner(DefaultSavePlanner):
    """Writes what each rank holds in pieces; of equal pieces one rank writes one, and together they must fill all."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._chunk_bytes = chunk_bytes

    def create_local_plan(self) -> SavePlan:
        """One item for each piece that this rank holds."""
        ours: Ours = self.state_dict["held"]
        items = [item for held in ours.held.values() for item in self._items(held)]
        self.plan = SavePlan(items)
        return self.plan

    def _items(self, held: Held) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(held.tensor)
        pieces = chunks_of(held.region, held.tensor.itemsize, self._chunk_bytes)
        return [
            WriteItem(
                index=MetadataIndex(held.name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, torch.Size(held.shape)),
            )
            for chunk in map(as_chunk, pieces)
        ]

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The piece that an item stands for, where it lies."""
        ours: Ours = self.state_dict["held"]
        held, data = ours.held[write_item.index.fqn], write_item.tensor_data
        assert data is not None, "every item of this planner is a piece of a tensor"
        tensor = held.tensor
        for dim, (run, offset, size) in enumerate(zip(held.region, data.chunk.offsets, data.chunk.sizes, strict=True)):
            tensor = tensor.narrow(dim, offset - run.start, size)
        return tensor


class RegionLoadPlanner(LoadPlanner):
    """Reads into each rank's tensors what overlaps them; the caller has checked that all of it is there."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take what is to be filled, and what is stored."""
        assert metadata is not None, "a reader gives metadata"
        self._ours: Ours = state_dict["held"]
        self._metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        """One item for each stored piece that overlaps what this rank holds."""
        items: list[ReadItem] = []
        for held in self._ours.held.values():
            stored = self._metadata.state_dict_metadata[held.name]
            assert isinstance(stored, TensorStorageMetadata), "only tensors are stored"
            if all(map(len, held.region)):
                items += create_read_items_for_chunk_list(held.name, stored, [as_chunk(held.region)])
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """Every rank's own plan."""
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        """As planned."""
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Nothing but tensors is stored."""
        raise TypeError(f"{read_item.dest_index.fqn} is no tensor")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """The view to copy into."""
        tensor = self._ours.held[read_item.dest_index.fqn].tensor
        for dim, (offset, size) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            tensor = tensor.narrow(dim, offset, size)
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """The view was copied into already."""


def as_chunk(region: Region) -> ChunkStorageMetadata:
    """A region in torch's words."""
    return ChunkStorageMetadata(torch.Size([run.start for run in region]), torch.Size(map(len, region)))
