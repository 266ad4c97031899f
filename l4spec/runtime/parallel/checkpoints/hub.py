"""A checkpoint in Hugging Face's layout (or our own names), written and read by many ranks.

Sizes are known before values, so that the files are laid out first and every rank writes its parts in their place: no
rank assembles a whole tensor. Names and layouts are those of `l4spec.runtime.checkpoints`.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from l4spec.errors import UserError
from l4spec.runtime.checkpoints.digests import Unchanged
from l4spec.runtime.checkpoints.headers import INDEX
from l4spec.runtime.checkpoints.layout import StoredTensor, TensorPiece
from l4spec.runtime.checkpoints.load import open_stored
from l4spec.runtime.checkpoints.regions import stored_part
from l4spec.runtime.checkpoints.save import DEFAULT_SHARD_BYTES, SavedCheckpoint, layout_and_text
from l4spec.runtime.checkpoints.write import TensorEntry, file_names, header_of, index_of, raw_bytes, shards_of
from l4spec.runtime.parallel.checkpoints.local_shards import shards_of_model, whole_shapes
from l4spec.runtime.parallel.checkpoints.planners import (
    CHUNK_BYTES,
    Ours,
    RegionLoadPlanner,
    RegionSavePlanner,
    as_chunk,
)
from l4spec.runtime.parallel.checkpoints.rank_coordination import failures_named, new_folder, require_undamaged_by_ranks
from l4spec.sharding.rules import Region

if TYPE_CHECKING:
    from l4spec.runtime.model import Model


@dataclass(frozen=True, slots=True)
class _Files:
    """Locations of the data: files with their headers, and each stored tensor's file and first byte."""

    shards: dict[str, list[TensorEntry]]
    places: Mapping[str, tuple[str, int]]

    @classmethod
    def of(cls, entries: list[TensorEntry], max_shard_bytes: int) -> "_Files":
        shards = shards_of(entries, max_shard_bytes)
        named = dict(zip(file_names(len(shards)), shards, strict=True))
        places = {}
        for name, shard in named.items():
            start = len(header_of(shard))
            for entry in shard:
                places[entry.name] = (name, start)
                start += entry.num_bytes
        return cls(named, places)

    def lay_out(self, folder: Path, text: tuple[str, str]) -> None:
        """Write headers and the description of the model, and extend every file to its final size."""
        for name, shard in self.shards.items():
            with (folder / name).open("wb") as file:
                file.write(header_of(shard))
                file.truncate(file.tell() + sum(entry.num_bytes for entry in shard))
        if len(self.shards) > 1:
            total = sum(entry.num_bytes for shard in self.shards.values() for entry in shard)
            index = index_of(tuple(self.shards), tuple(self.shards.values()), total)
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        (folder / text[0]).write_text(text[1], encoding="utf-8")


def save_hub(model: "Model", directory: Path | str, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> SavedCheckpoint:
    """Save the weights as `l4spec.save_checkpoint` does, every rank its part; all ranks must call it.

    Files are on storage shared by all ranks. The folder gets its name when every rank has finished. Raises UserError.
    """
    shards = shards_of_model(model)
    layout, text = layout_and_text(model.graph, model.dtype)
    entries = [TensorEntry(stored.name, stored.shape, model.dtype) for stored in layout.saved()]
    files = _Files.of(entries, max_shard_bytes)
    with new_folder(directory) as folder:
        writer = _HubWriter(folder, files, layout.saved(), text)
        save(Ours(shards).state(), storage_writer=writer, planner=RegionSavePlanner())
    num_bytes = sum(entry.num_bytes for entry in entries)
    return SavedCheckpoint(Path(directory), layout.name, len(entries), len(files.shards), num_bytes)


class _HubWriter(StorageWriter):
    """Writes pieces of our tensors to where the layout puts them."""

    def __init__(self, folder: Path, files: _Files, stored: tuple[StoredTensor, ...], text: tuple[str, str]) -> None:
        self._folder, self._files, self._text = folder, files, text
        self._stored: dict[str, list[tuple[StoredTensor, TensorPiece]]] = {}
        for tensor in stored:
            for piece in tensor.pieces:
                self._stored.setdefault(piece.tensor, []).append((tensor, piece))

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between checkpoints."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do before plans are made."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On rank 0, before any rank writes."""
        self._files.lay_out(self._folder, self._text)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        """Write this rank's pieces."""
        results = []
        with ExitStack() as opened:
            descriptors: dict[str, int] = {}
            for item in plan.items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor)
                for stored, box, values in self._parts(item, tensor):
                    name, start = self._files.places[stored.name]
                    if name not in descriptors:
                        descriptors[name] = os.open(self._folder / name, os.O_WRONLY)
                        opened.callback(os.close, descriptors[name])
                    _write_box(descriptors[name], start, stored.view or stored.shape, box, values)
                results.append(WriteResult(item.index, tensor.nbytes, None))
            for descriptor in descriptors.values():
                os.fsync(descriptor)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _parts(self, item: WriteItem, tensor: Tensor) -> Iterator[tuple[StoredTensor, Region, Tensor]]:
        """The stored tensors that a piece of ours is part of, with the box there and its values."""
        assert item.tensor_data is not None
        region = _region(item.tensor_data.chunk.offsets, item.tensor_data.chunk.sizes)
        for stored, piece in self._stored[item.index.fqn]:
            if piece.step > 1:
                hint = "save sharded, and convert on one process"
                raise UserError(f"{stored.name} holds our tensors in turns, which ranks cannot write apart", hint=hint)
            whole = tuple(map(range, item.tensor_data.size))
            ours = _cut(whole, piece.region)
            common = tuple(range(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(region, ours, strict=True))
            if not all(map(len, common)):
                continue
            values = tensor
            for dim, (run, own) in enumerate(zip(common, region, strict=True)):
                values = values.narrow(dim, run.start - own.start, len(run))
            box = [range(run.start - own.start, run.stop - own.start) for run, own in zip(common, ours, strict=True)]
            if piece.transposed:
                values, box[-2:] = values.mT, box[:-3:-1]
            for dim, start, _ in piece.stored_region:
                box[dim] = range(box[dim].start + start, box[dim].stop + start)
            yield stored, tuple(box), values

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """The files are complete as they are."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """The folder is given at construction."""
        return True


def _write_box(descriptor: int, start: int, shape: tuple[int, ...], box: Region, values: Tensor) -> None:
    """Write `values` into a box of a tensor that begins at byte `start`: one call for each run without gaps."""
    values = values.detach().to("cpu").contiguous()
    data, size = raw_bytes(values), values.itemsize
    depth = len(shape)  # dims before it are walked, those from it on are written as one run
    while depth > 0 and (depth == len(shape) or len(box[depth]) == shape[depth]):
        depth -= 1
    num_bytes = size * prod(map(len, box[depth:]))
    strides = [size * prod(shape[dim + 1 :]) for dim in range(len(shape))]
    inner = sum(run.start * stride for run, stride in zip(box[depth:], strides[depth:], strict=True))
    for index, place in enumerate(product(*box[:depth])):
        offset = start + inner + sum(i * stride for i, stride in zip(place, strides[:depth], strict=True))
        written = os.pwrite(descriptor, data[index * num_bytes : (index + 1) * num_bytes], offset)
        if written != num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def load_hub(model: "Model", directory: Path, *, verify: bool) -> None:
    """Load every rank's part of a model from a checkpoint folder of whole tensors, reading that part only.

    With `verify`, files are first compared with their digests. Raises UserError for a model with modules of multi-token
    prediction, which such folders have under other names.
    """
    if model.module_nodes:
        message = f"modules of multi-token prediction are read from step folders of a run, and {directory} is none"
        raise UserError(
            message, hint="begin from a step folder, or from random weights; `open_mtp` reads modules that draft"
        )
    before = Unchanged.of(directory)
    with ExitStack() as files, failures_named(f"cannot read {directory}"):
        reader = _HubReader(model, directory, files)
        if verify:
            require_undamaged_by_ranks(directory, required=False)
        load(Ours(shards_of_model(model)).state(), storage_reader=reader, planner=RegionLoadPlanner())
    before.require()


class _HubReader(StorageReader):
    """Reads boxes of stored tensors out of mapped files."""

    def __init__(self, model: "Model", directory: Path, files: ExitStack) -> None:
        tensors, self._read = open_stored(model.graph, directory, files)
        shapes = whole_shapes(model)
        self._stored: dict[MetadataIndex, tuple[StoredTensor, TensorPiece]] = {}
        self._metadata = Metadata({})
        for stored in tensors:
            for piece in stored.pieces:
                chunk = as_chunk(_cut(tuple(map(range, shapes[piece.tensor])), piece.region))
                self._stored[MetadataIndex(piece.tensor, chunk.offsets)] = (stored, piece)
                size = torch.Size(shapes[piece.tensor])
                entry = TensorStorageMetadata(TensorProperties(dtype=model.dtype), size, [])
                known = self._metadata.state_dict_metadata.setdefault(piece.tensor, entry)
                assert isinstance(known, TensorStorageMetadata)
                known.chunks.append(chunk)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """The folder is given at construction."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Metadata of the stored tensors, in our names."""
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Files are open already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As planned."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As planned."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "Future[None]":
        """Copy the overlapping boxes; of a mapped file only those pages are read."""
        for item in plan.items:
            stored, piece = self._stored[item.storage_index]
            box = stored_part(self._read(stored).view(stored.view or stored.shape), piece)
            for dim, (offset, size) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                box = box.narrow(dim, offset, size)
            target = planner.resolve_tensor(item)
            copy_in_parts(target, box)
            planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """The folder is given at construction."""
        return True


def copy_in_parts(target: Tensor, source: Tensor) -> None:
    """Copy along the first dim by at most `CHUNK_BYTES`: casting on the way to a device takes a copy."""
    rows = max(1, CHUNK_BYTES // max(1, source[:1].nbytes)) if source.dim() else 1
    if source.dim() == 0 or len(source) <= rows:
        target.copy_(source)
        return
    for start in range(0, len(source), rows):
        target[start : start + rows].copy_(source[start : start + rows])


def _region(offsets: torch.Size, sizes: torch.Size) -> Region:
    return tuple(range(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))


def _cut(whole: Region, region: tuple[tuple[int, int, int], ...]) -> Region:
    """A region in the form of a range for every dim."""
    runs = list(whole)
    for dim, start, stop in region:
        runs[dim] = range(start, stop)
    return tuple(runs)
