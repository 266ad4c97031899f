"""Save and load planners for torch.distributed.checkpoint: the regions of tensors to write and read."""

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

from l4spec.runtime.parallel.checkpoints.local_shards import LocalShard, chunks_of
from l4spec.sharding.rules import Region

CHUNK_BYTES = 1 << 26
"""A tensor is written in pieces of at most this size: a reader takes whole pieces into memory."""


@dataclass(frozen=True, slots=True)
class Ours:
    """Shards that a rank passes to torch.distributed.checkpoint: one object under one name, the same on every rank."""

    shards: Mapping[str, LocalShard]

    def state(self) -> dict[str, Any]:
        """The state that a planner of this file is set up with."""
        return {"shards": self}


class RegionSavePlanner(DefaultSavePlanner):
    """Writes each rank's shards in pieces; one rank writes each piece, and together they must be complete."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._chunk_bytes = chunk_bytes

    def create_local_plan(self) -> SavePlan:
        """One item for each piece that this rank holds."""
        ours: Ours = self.state_dict["shards"]
        items = [item for shard in ours.shards.values() for item in self._items(shard)]
        self.plan = SavePlan(items)
        return self.plan

    def _items(self, shard: LocalShard) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(shard.tensor)
        pieces = chunks_of(shard.region, shard.tensor.itemsize, self._chunk_bytes)
        return [
            WriteItem(
                index=MetadataIndex(shard.name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, torch.Size(shard.shape)),
            )
            for chunk in map(as_chunk, pieces)
        ]

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The piece of an item, in the model's memory."""
        ours: Ours = self.state_dict["shards"]
        shard, data = ours.shards[write_item.index.fqn], write_item.tensor_data
        assert data is not None, "every item of this planner is a piece of a tensor"
        tensor = shard.tensor
        for dim, (run, offset, size) in enumerate(zip(shard.region, data.chunk.offsets, data.chunk.sizes, strict=True)):
            tensor = tensor.narrow(dim, offset - run.start, size)
        return tensor


class RegionLoadPlanner(LoadPlanner):
    """Reads the overlapping pieces into each rank's tensors; the caller has checked that all exist."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Set the tensors to fill and the stored metadata."""
        assert metadata is not None, "a reader gives metadata"
        self._ours: Ours = state_dict["shards"]
        self._metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        """One item for each stored piece that overlaps this rank's shards."""
        items: list[ReadItem] = []
        for shard in self._ours.shards.values():
            stored = self._metadata.state_dict_metadata[shard.name]
            assert isinstance(stored, TensorStorageMetadata), "only tensors are stored"
            if all(map(len, shard.region)):
                items += create_read_items_for_chunk_list(shard.name, stored, [as_chunk(shard.region)])
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
        tensor = self._ours.shards[read_item.dest_index.fqn].tensor
        for dim, (offset, size) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            tensor = tensor.narrow(dim, offset, size)
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """The view was copied into already."""


def as_chunk(region: Region) -> ChunkStorageMetadata:
    """A region in torch's words."""
    return ChunkStorageMetadata(torch.Size([run.start for run in region]), torch.Size(map(len, region)))
