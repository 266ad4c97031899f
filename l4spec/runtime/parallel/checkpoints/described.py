"""Validation of a sharded checkpoint's `.metadata`, down to every integer, before torch reads it."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from l4spec.runtime.parallel.checkpoints.strict_pickle import Name, Record, read_pickle

_CHECKPOINT = "torch.distributed.checkpoint"
_DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64", "int64")}
_PATHS = {"Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}
_ALLOWED = {
    f"{_CHECKPOINT}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_CHECKPOINT}.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch": {"Size", *_DTYPES},
    "torch.serialization": {"_get_layout"},
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
}
"""Classes that a checkpoint's description may contain, by module; `pathlib` for the path it was written to."""
_LONGEST_NAME = 1000
_MOST_DIMS = 16
_LARGEST = 1 << 60


class WrongDescription(ValueError):
    """Raised for an invalid part of a description, which the message names."""


def described(data: bytes) -> Metadata:
    """The description of a sharded checkpoint, each value of its type and within its bounds.

    Pieces are inside their tensor and cover it exactly once; each has a place of its own in a file. Raises
    WrongDescription, or RefusedPickle for a pickle that is no such description.
    """
    state = _state(read_pickle(data, _ALLOWED), "Metadata")
    tensors = {_name(name): _tensor(name, value) for name, value in _mapping(state, "state_dict_metadata").items()}
    places = dict(_places(_mapping(state, "storage_data")))
    _require_places(tensors, places)
    return Metadata(state_dict_metadata=tensors, storage_data=places)


def _tensor(name: str, value: Any) -> STORAGE_TYPES:
    if isinstance(value, Record) and value.name.name == "BytesStorageMetadata":
        return BytesStorageMetadata()
    state = _state(value, "TensorStorageMetadata", name)
    properties = state.get("properties")
    written = properties.state if isinstance(properties, Record) else None
    dtype = written[0] if isinstance(written, tuple) and written else None
    if not isinstance(dtype, Name) or dtype.module != "torch" or dtype.name not in _DTYPES:
        raise WrongDescription(f"{name}: has no known number format")
    size, chunks = _size(state.get("size"), name), state.get("chunks")
    if not isinstance(chunks, list):
        raise WrongDescription(f"{name}: has no list of pieces")
    pieces = [_chunk(chunk, size, name) for chunk in chunks]
    if sum(piece.sizes.numel() for piece in pieces) != size.numel() or _overlap(pieces):
        raise WrongDescription(f"{name}: is not complete, or pieces of it overlap")
    return TensorStorageMetadata(TensorProperties(dtype=_DTYPES[dtype.name]), size, pieces)


def _chunk(value: Any, size: torch.Size, name: str) -> ChunkStorageMetadata:
    state = _state(value, "ChunkStorageMetadata", name)
    offsets, sizes = _size(state.get("offsets"), name), _size(state.get("sizes"), name)
    if not len(offsets) == len(sizes) == len(size):
        raise WrongDescription(f"{name}: a piece has other dims")
    if any(start + length > whole for start, length, whole in zip(offsets, sizes, size, strict=True)):
        raise WrongDescription(f"{name}: a piece is out of bounds")
    return ChunkStorageMetadata(offsets, sizes)


def _overlap(pieces: list[ChunkStorageMetadata]) -> bool:
    """True if two pieces share an element; sweeps along the dim with most starts and compares open pieces only."""
    filled = [piece for piece in pieces if piece.sizes.numel()]
    if len(filled) < 2:
        return False
    num_dims = len(filled[0].sizes)
    if not num_dims:
        return True
    dim = max(range(num_dims), key=lambda dim: len({piece.offsets[dim] for piece in filled}))
    active: list[ChunkStorageMetadata] = []
    for piece in sorted(filled, key=lambda piece: piece.offsets[dim]):
        active = [other for other in active if other.offsets[dim] + other.sizes[dim] > piece.offsets[dim]]
        if any(_share(piece, other) for other in active):
            return True
        active.append(piece)
    return False


def _share(a: ChunkStorageMetadata, b: ChunkStorageMetadata) -> bool:
    return all(
        start < other + length and other < start + size
        for start, size, other, length in zip(a.offsets, a.sizes, b.offsets, b.sizes, strict=True)
    )


def _places(entries: Mapping[Any, Any]) -> Iterator[tuple[MetadataIndex, _StorageInfo]]:
    for key, value in entries.items():
        index = _state(key, "MetadataIndex")
        name = _name(index.get("fqn"))
        offset = None if index.get("offset") is None else _size(index["offset"], name)
        place = _state(value, "_StorageInfo", name)
        path, start, length = (place.get(field) for field in ("relative_path", "offset", "length"))
        if not isinstance(path, str) or not path or len(path) > 255 or set(path) & set("/\\\0") or path in (".", ".."):
            raise WrongDescription(f"{name}: expected the name of a file in the folder, found {str(path)[:80]!r}")
        if type(start) is not int or type(length) is not int or not (0 <= start < _LARGEST and 0 <= length < _LARGEST):
            raise WrongDescription(f"{name}: has no place in {path[:80]}")
        if place.get("transform_descriptors"):
            raise WrongDescription(f"{name}: is compressed or changed in {path[:80]}, which is not read")
        yield MetadataIndex(name, offset), _StorageInfo(path, start, length)


def _require_places(tensors: Mapping[str, STORAGE_TYPES], places: Mapping[MetadataIndex, _StorageInfo]) -> None:
    """Each piece has one place, each place one piece, and no two share a byte."""
    pieces = [
        MetadataIndex(name, chunk.offsets)
        for name, tensor in tensors.items()
        if isinstance(tensor, TensorStorageMetadata)
        for chunk in tensor.chunks
    ]
    for piece in pieces:
        if piece not in places:
            raise WrongDescription(f"{piece.fqn}: a piece is in no file")
    by_file: dict[str, list[tuple[int, int, str]]] = {}
    for index, place in places.items():
        by_file.setdefault(place.relative_path, []).append((place.offset, place.offset + place.length, index.fqn))
    for path, runs in by_file.items():
        runs.sort()
        for (_, stop, name), (start, _, other) in pairwise([(0, 0, ""), *runs]):
            if start < stop:
                raise WrongDescription(f"{other}: shares bytes of {path[:80]} with {name}")
            if start > stop:  # torch writes pieces one after the other
                raise WrongDescription(f"{other}: bytes of {path[:80]} before it belong to no piece")


def _state(value: Any, kind: str, of: str = "it") -> dict[str, Any]:
    """The state of a record of a class by its name."""
    if not isinstance(value, Record) or value.name.name != kind or not isinstance(value.state, dict):
        raise WrongDescription(f"{of}: expected a {kind.removeprefix('_')}")
    return value.state


def _mapping(state: Mapping[str, Any], field: str) -> dict[Any, Any]:
    result = state.get(field)
    if not isinstance(result, dict):
        raise WrongDescription(f"expected a mapping as {field}")
    return result


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
        raise WrongDescription(f"expected the name of a tensor, found {str(value)[:80]!r}")
    return value


def _size(value: Any, name: str) -> torch.Size:
    """Sizes or offsets."""
    inner = value.arguments[0] if isinstance(value, Record) and len(value.arguments) == 1 else None
    if not isinstance(inner, tuple | list) or len(inner) > _MOST_DIMS:
        raise WrongDescription(f"{name}: expected sizes")
    if not all(type(size) is int and 0 <= size < _LARGEST for size in inner) or torch.Size(inner).numel() >= _LARGEST:
        raise WrongDescription(f"{name}: has a size that no tensor has")
    return torch.Size(inner)
