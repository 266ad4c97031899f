"""Writing safetensors: one tensor at a time into a folder that gets its name only when it is complete."""

import ctypes
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.progress import Progress
from l4spec.runtime.checkpoints.digests import Digest, digest_of, files_of, new_digest, write_digests
from l4spec.runtime.checkpoints.headers import INDEX, SINGLE

FORMATS = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int32: "I32",
    torch.int64: "I64",
}
"""Number formats by the names that files give them."""
_ALIGNMENT = 8
_UNFINISHED = ".unfinished."


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor to write: its name, shape and format are known before `make` puts its values together on the CPU.

    Without `make` its values are written by others, into the place that the header gives them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * self.dtype.itemsize


def write_folder(
    target: Path, entries: Sequence[TensorEntry], texts: dict[str, str], max_shard_bytes: int, progress: Progress | None
) -> int:
    """Write the tensors and text files to a new folder; gives the number of weight files. Raises UserError."""
    shards = shards_of(entries, max_shard_bytes)
    try:
        _write(target, shards, texts, progress)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    return len(shards)


def require_new_folder(directory: Path | str) -> Path:
    """The path of a folder that is not there yet, or is empty. Raises UserError."""
    path = Path(directory)
    try:
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
        here = path.is_dir() and path.samefile(".")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write {str(path)[:200]!r}: {reason}") from None
    if taken:
        raise UserError(f"{path} exists and is not empty", hint="name a new folder")
    if here:  # it takes its name at the end, and would pull the ground from under the shell
        raise UserError(f"{path} is the folder we are in", hint="name a new one in it")
    return path


def shards_of(entries: Sequence[TensorEntry], limit: int) -> list[list[TensorEntry]]:
    """Entries in order, a new file before the limit is passed; one tensor above it has a file of its own."""
    shards: list[list[TensorEntry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def _write(
    target: Path, shards: Sequence[Sequence[TensorEntry]], texts: dict[str, str], progress: Progress | None
) -> None:
    folder = made_beside(target)
    try:
        names, digests = file_names(len(shards)), {}
        total, done = sum(entry.num_bytes for shard in shards for entry in shard), 0
        for name, shard in zip(names, shards, strict=True):
            with (folder / name).open("wb") as file:
                hashed = _Hashed(file)
                for num_bytes in _write_shard(hashed, shard):
                    done += num_bytes
                    if progress:
                        progress(done, total)
            digests[name] = hashed.digest
        if len(shards) > 1:
            texts = {INDEX: json.dumps(index_of(names, shards, total), indent=2) + "\n", **texts}
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        digests |= {name: digest_of(folder / name) for name in files_of(folder) if name not in digests}
        write_digests(folder, digests)
        name_folder(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class _Hashed:
    """A file being written, with the digest of the bytes so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hasher, self._num_bytes = file, new_digest(), 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hasher.update(data)
        self._num_bytes += len(data)

    @property
    def digest(self) -> Digest:
        return Digest(self._num_bytes, self._hasher.hexdigest())


def made_beside(target: Path) -> Path:
    """A new hidden folder beside `target` to write in; those left by killed processes are removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(target.parent, glob.escape(target.name[:40]))
    return Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:40]}{_UNFINISHED}"))


def remove_unfinished(parent: Path, pattern: str) -> None:
    """Remove unfinished folders that killed processes left, for final names that match a pattern."""
    for folder in parent.glob(f".{pattern}{_UNFINISHED}*"):
        shutil.rmtree(folder, ignore_errors=True)


def name_folder(folder: Path, target: Path) -> None:
    """Give a folder its name once all of its files are on the disk: after a crash it is whole or not there."""
    for path in (*folder.iterdir(), folder):
        _sync(path)
    folder.chmod(0o755)
    if target.is_dir():
        target.rmdir()
    folder.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_names(count: int) -> list[str]:
    """Names of `count` weight files."""
    return [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def index_of(names: Sequence[str], shards: Sequence[Sequence[TensorEntry]], total: int) -> dict[str, Any]:
    """The content of the index of several weight files."""
    pairs = sorted((entry.name, name) for name, shard in zip(names, shards, strict=True) for entry in shard)
    return {"metadata": {"total_size": total}, "weight_map": dict(pairs)}


def _write_shard(file: _Hashed, shard: Sequence[TensorEntry]) -> Iterable[int]:
    """Write header and data; yields the bytes of each tensor once it is written."""
    file.write(header_of(shard))
    for entry in shard:
        assert entry.make is not None, entry.name
        tensor = entry.make().contiguous()
        assert (tensor.shape, tensor.dtype) == (entry.shape, entry.dtype), entry.name
        file.write(raw_bytes(tensor))
        yield entry.num_bytes


def header_of(shard: Sequence[TensorEntry]) -> bytes:
    """The beginning of a weight file, up to the first tensor's data; the others' follow without gaps."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in shard:
        stop = start + entry.num_bytes
        shape = list(entry.shape)
        header[entry.name] = {"dtype": FORMATS[entry.dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's own memory as bytes, without a copy: valid while the tensor lives.

    Little-endian, as the format and every machine that torch runs on.
    """
    num_bytes = tensor.numel() * tensor.itemsize
    view = memoryview((ctypes.c_char * num_bytes).from_address(tensor.data_ptr()))
    return view.cast("B")
