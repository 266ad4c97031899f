"""Headers of a checkpoint's safetensors files: names, shapes, number formats and files. Imports no torch.

Format: https://github.com/huggingface/safetensors#format – 8 bytes little-endian header length, a JSON header that
gives `dtype`, `shape` and `data_offsets` by name, then the data.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from l4spec.errors import Place, Problem, UserError
from l4spec.spec.tree import shortened

MAX_DIMS = 16
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses larger ones too."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of an element by the format's own names."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Metadata of a stored tensor, read from a header without its data."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


class DuplicateKeyError(ValueError):
    """Raised for a JSON object with a repeated key."""


def read_headers(directory: Path) -> dict[str, TensorHeader]:
    """Every tensor of a directory with one safetensors file or many, with or without an index.

    Raises UserError naming every problem: no such files, a broken index or header, truncated data, names that two
    files or the index and its files disagree about.
    """
    index = directory / INDEX
    files = _indexed_files(index) if index.exists() else None
    problems: list[Problem] = []
    headers: dict[str, TensorHeader] = {}
    for path in files or _plain_files(directory):
        for name, header in _read_header(path, problems).items():
            if name in headers:
                problems.append(Problem(f"is stored twice, in {headers[name].file.name} too", name, Place(path.name)))
            headers[name] = header
    if files is not None and not problems:
        problems += _index_mistakes(files, headers)
    if problems:
        raise UserError(problems)
    return headers


def _plain_files(directory: Path) -> list[Path]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"{directory} holds no weights", hint=f"expected {SINGLE} or {INDEX}")
    return files


def _indexed_files(index: Path) -> dict[Path, set[str]]:
    """The files that an index names, with the tensors that it expects in each."""
    data = read_json(index)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    place = Place(index.name)
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError([Problem("expected a mapping from tensor names to files", "weight_map", place)])
    problems = [
        Problem(f"expected the name of a file beside the index, found {shortened(file)}", f"weight_map.{name}", place)
        for name, file in weight_map.items()
        if not _is_plain_name(file)
    ]
    if problems:
        raise UserError(problems)
    files: dict[Path, set[str]] = {}
    for name, file in weight_map.items():
        files.setdefault(index.parent / file, set()).add(name)
    missing = [Problem("is named by the index, but is no file", place=Place(p.name)) for p in files if not p.is_file()]
    if missing:
        raise UserError(missing)
    return dict(sorted(files.items()))


def _index_mistakes(files: Mapping[Path, set[str]], headers: Mapping[str, TensorHeader]) -> Iterable[Problem]:
    for path, names in files.items():
        for name in sorted(names):
            if name not in headers:
                yield Problem("is missing, although the index names it", name, Place(path.name))
            elif headers[name].file != path:
                yield Problem(f"is in {headers[name].file.name}, not where the index says", name, Place(path.name))


def _is_plain_name(file: Any) -> bool:
    plain = isinstance(file, str) and file == Path(file).name and "\\" not in file and "\0" not in file
    return plain and file.endswith(".safetensors")


def _read_header(path: Path, problems: list[Problem]) -> dict[str, TensorHeader]:
    """The tensors of one file; errors are appended to `problems`."""
    place = Place(path.name)
    try:
        raw, num_data_bytes = _header_text(path)
        header = _parse(raw)
    except OSError as error:
        problems.append(Problem(f"cannot be read: {error.strerror}", place=place))
        return {}
    except ValueError as error:
        problems.append(Problem(str(error), place=place))
        return {}
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        complaint = _complaint(entry, num_data_bytes)
        if complaint:
            problems.append(Problem(complaint, name, place))
        else:
            tensors[name] = TensorHeader(tuple(entry["shape"]), entry["dtype"], path)
    return tensors


def _header_text(path: Path) -> tuple[bytes, int]:
    """A file's header and the number of bytes after it."""
    if not path.is_file():
        raise ValueError("is no file")
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8 or length > MAX_HEADER_BYTES:
            raise ValueError("is no safetensors file, or it is truncated in its header")
        return file.read(length), size - 8 - length


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except DuplicateKeyError as error:
        raise ValueError(f"names {shortened(str(error))} twice in its header") from None
    except (ValueError, RecursionError):
        raise ValueError("is no safetensors file: its header is no JSON") from None
    if not isinstance(header, dict):
        raise ValueError("is no safetensors file: its header is no mapping")
    return header


def _complaint(entry: Any, num_data_bytes: int) -> str:
    """Error message for an invalid header entry; empty for a valid one."""
    if not isinstance(entry, dict) or not _are_sizes(entry.get("shape")) or not _are_sizes(entry.get("data_offsets")):
        return "has a broken entry in the header"
    shape, dtype, offsets = entry["shape"], entry.get("dtype"), entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"has an unknown number format: found {shortened(dtype)}"
    if len(offsets) != 2 or (offsets[1] - offsets[0]) * 8 != prod(shape) * BITS[dtype]:
        return f"has a shape {list(shape)} that does not match its bytes"
    if offsets[1] > num_data_bytes:
        return f"is truncated: it ends at byte {offsets[1]:,} of {num_data_bytes:,}"
    return ""


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMS
        and all(type(size) is int and 0 <= size < 2**63 for size in value)
    )


def read_json(path: Path) -> Any:
    """A JSON file. Raises UserError if it is invalid, is larger than 100 MB, or repeats a key."""
    place = Place(path.name)
    try:
        if not path.is_file() or path.stat().st_size > MAX_HEADER_BYTES:
            raise UserError([Problem("expected a file of at most 100 MB", place=place)])
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise UserError([Problem(f"cannot be read: {error.strerror}", place=place)]) from None
    except DuplicateKeyError as error:
        raise UserError([Problem(f"says {shortened(str(error))} twice", place=place)]) from None
    except UserError:
        raise
    except (ValueError, RecursionError):
        raise UserError([Problem("is no JSON", place=place)]) from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise DuplicateKeyError(key)
        unique[key] = value
    return unique
