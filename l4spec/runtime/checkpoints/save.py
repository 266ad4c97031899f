"""Saving: one tensor at a time into safetensors files, in a folder that gets its name only when it is complete."""

import ctypes
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from l4spec.errors import SpecError, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.huggingface import export_config
from l4spec.runtime.checkpoints.headers import INDEX, SINGLE
from l4spec.runtime.checkpoints.hub_names import hub_layout, native_layout
from l4spec.runtime.checkpoints.layout import Layout, StoredTensor
from l4spec.runtime.checkpoints.regions import part
from l4spec.runtime.progress import Report
from l4spec.spec.model import ModelSpec

if TYPE_CHECKING:
    from l4spec.runtime.model import Model

CONFIG = "config.json"
SPEC = "spec.yaml"
DEFAULT_SHARD_BYTES = 5_000_000_000
_FORMATS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
_SPEC_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """What was written: the layout's name, how many tensors in how many weight files, and their bytes of data."""

    directory: Path
    layout: str
    num_tensors: int
    num_files: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor to write, its format and bytes known before its values are put together."""

    stored: StoredTensor
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.stored.numel * self.dtype.itemsize


def save_checkpoint(
    model: "Model", directory: Path | str, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES, report: Report | None = None
) -> SavedCheckpoint:
    """Write the weights and the configuration of `model` to `directory`, which must be new or empty.

    A model that a Hugging Face family can say is saved under that family's names with a config.json, and loads in
    transformers; any other under our own names with a spec.yaml. Several files and an index where the weights exceed
    `max_shard_bytes`. All is written beside the directory and renamed at the end. Raises UserError.
    """
    target = require_new_folder(directory)
    tensors = model.state_dict()
    if any(tensor.is_meta for tensor in tensors.values()):
        raise UserError("the model lies on the meta device and has no weights to save", hint="build it on cpu or cuda")
    layout, text = _layout_and_text(model.graph, _spec_as_built(model.graph, tensors))
    entries = [_Entry(stored, tensors[stored.pieces[0].tensor].dtype) for stored in layout.saved()]
    shards = _shards(entries, max_shard_bytes)
    try:
        _write_folder(target, shards, tensors, text, report)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    return SavedCheckpoint(target, layout.name, len(entries), len(shards), sum(entry.num_bytes for entry in entries))


def require_new_folder(directory: Path | str) -> Path:
    """The path of a folder that is not there yet, or is empty. Raises UserError."""
    path = Path(directory)
    try:
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {str(path)[:200]!r}: {error}") from None
    if taken:
        raise UserError(f"{path} exists and is not empty", hint="name a new folder")
    return path


def _spec_as_built(graph: LayerGraph, tensors: Mapping[str, Tensor]) -> ModelSpec:
    """The spec with the number format that most of the weights have."""
    spec = graph.model.spec
    built = _SPEC_DTYPES.get(tensors["text.embedding.weight"].dtype, spec.text.dtype)
    return spec.model_copy(update={"text": spec.text.model_copy(update={"dtype": built})})


def _layout_and_text(graph: LayerGraph, spec: ModelSpec) -> tuple[Layout, tuple[str, str]]:
    """The layout, and the name and text of the file that says what the model is."""
    try:
        config = export_config(spec)
    except SpecError:
        return native_layout(graph), (SPEC, _spec_text(spec))
    layout = hub_layout(graph, config["model_type"])
    assert layout is not None, f"{config['model_type']} has a config for this model, but no names for its tensors"
    return layout, (CONFIG, json.dumps(config, indent=2) + "\n")


def _spec_text(spec: ModelSpec) -> str:
    from l4spec.huggingface.yaml_out import to_yaml

    data = spec.model_dump(mode="json", exclude_none=True, exclude={"extends", "claims", "estimated", "huggingface"})
    return to_yaml(data, head=("The model whose weights lie beside this file, written by l4spec.",))


def _shards(entries: Sequence[_Entry], limit: int) -> list[list[_Entry]]:
    """Entries in order, a new file before the limit is passed; one tensor above it has a file of its own."""
    shards: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def _write_folder(
    target: Path,
    shards: Sequence[Sequence[_Entry]],
    tensors: Mapping[str, Tensor],
    text: tuple[str, str],
    report: Report | None,
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:40]}."))
    try:
        names = _file_names(len(shards))
        total, done = sum(entry.num_bytes for shard in shards for entry in shard), 0
        for name, shard in zip(names, shards, strict=True):
            with (folder / name).open("wb") as file:
                for num_bytes in _write_shard(file, shard, tensors):
                    done += num_bytes
                    if report:
                        report(done, total)
        if len(shards) > 1:
            (folder / INDEX).write_text(json.dumps(_index(names, shards, total), indent=2) + "\n", encoding="utf-8")
        (folder / text[0]).write_text(text[1], encoding="utf-8")
        folder.chmod(0o755)
        if target.is_dir():
            target.rmdir()
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _file_names(count: int) -> list[str]:
    return [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _index(names: Sequence[str], shards: Sequence[Sequence[_Entry]], total: int) -> dict[str, Any]:
    pairs = sorted((entry.stored.name, name) for name, shard in zip(names, shards, strict=True) for entry in shard)
    return {"metadata": {"total_size": total}, "weight_map": dict(pairs)}


def _write_shard(file: BinaryIO, shard: Sequence[_Entry], tensors: Mapping[str, Tensor]) -> Iterable[int]:
    """Write header and data; yields the bytes of each tensor once it is written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in shard:
        stop = start + entry.num_bytes
        shape = list(entry.stored.shape)
        header[entry.stored.name] = {"dtype": _FORMATS[entry.dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for entry in shard:
        tensor = _assembled(entry, tensors)
        file.write(_raw_bytes(tensor))
        yield entry.num_bytes


def _assembled(entry: _Entry, tensors: Mapping[str, Tensor]) -> Tensor:
    """The stored tensor on the CPU: one of ours as it is, or put together from its pieces."""
    stored = entry.stored
    first = stored.pieces[0]
    if stored.view is None and len(stored.pieces) == 1 and not first.region and not first.transposed:
        return tensors[first.tensor].detach().cpu().contiguous()
    found = torch.empty(stored.shape, dtype=entry.dtype)
    for piece in stored.pieces:
        source = part(tensors[piece.tensor].detach(), piece.region)
        target = part(found.view(stored.view or stored.shape), piece.stored_region)
        target.copy_(source.mT if piece.transposed else source)
    return found


def _raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's own memory as bytes, without a copy: valid while the tensor lives.

    Little-endian, as the format and every machine that torch runs on.
    """
    num_bytes = tensor.numel() * tensor.itemsize
    view = memoryview((ctypes.c_char * num_bytes).from_address(tensor.data_ptr()))
    return view.cast("B")
