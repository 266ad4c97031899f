"""Digests of the files of a checkpoint: written when it is saved, compared before it is used. Imports no torch.

They find damage (a disk, a copy that broke off), not malice: who can change a file can change its digest. XXH3 with 128
bits reads 10 GB/s on a core that reaches 1.1 GB/s with SHA-256 and 0.9 GB/s with BLAKE2b, and so costs a load little.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4spec.errors import Place, Problem, UserError
from l4spec.runtime.checkpoints.headers import read_json

DIGESTS = "digests.json"
CONFIG = "config.json"
ALGORITHM = "xxh3_128"
_BLOCK = 1 << 22
_HINT = "--no-verify reads it as it is, if you know why it changed"
_EDITED = "--no-verify reads it as it is, if it was edited on purpose; saving what was read writes new digests"
_TEXTS = (".json", ".yaml")


def new_digest() -> Any:
    """A new hash object, with `update(bytes)` and `hexdigest()`."""
    import xxhash

    return xxhash.xxh3_128()


@dataclass(frozen=True, slots=True)
class Digest:
    """Length of a file and the digest of its bytes."""

    num_bytes: int
    digest: str


def digest_of(path: Path) -> Digest:
    """The digest of a file as it is there. Raises OSError."""
    hasher, buffer, num_bytes = new_digest(), memoryview(bytearray(_BLOCK)), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            num_bytes += count
    return Digest(num_bytes, hasher.hexdigest())


def write_digests(folder: Path, digests: Mapping[str, Digest]) -> None:
    """Write the digests of the files of a folder beside them."""
    files = {name: {"bytes": one.num_bytes, "digest": one.digest} for name, one in sorted(digests.items())}
    text = json.dumps({"algorithm": ALGORITHM, "files": files}, indent=1)
    (folder / DIGESTS).write_text(f"{text}\n", encoding="utf-8")


def files_of(folder: Path) -> list[str]:
    """The names of the files of a folder that get a digest, in order: all but the digests."""
    return sorted(path.name for path in folder.iterdir() if path.name != DIGESTS)


def read_digests(folder: Path) -> dict[str, Digest] | None:
    """The recorded digests of the files of a folder, None if there are none. Raises UserError for a damaged record."""
    if not os.path.lexists(folder / DIGESTS):
        return None
    data = read_json(folder / DIGESTS)
    files = data.get("files") if isinstance(data, dict) and data.get("algorithm") == ALGORITHM else None
    if not isinstance(files, dict) or not all(map(_is_digest, files.items())):
        raise UserError([Problem(f"expected the {ALGORITHM} digests of files", place=Place(DIGESTS), hint=_HINT)])
    return {name: Digest(entry["bytes"], entry["digest"]) for name, entry in files.items()}


def _is_digest(item: tuple[str, Any]) -> bool:
    name, entry = item
    plain = name == Path(name).name and "\0" not in name
    known = isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("digest"), str)
    return plain and known


def differences(folder: Path, digests: Mapping[str, Digest], names: Iterable[str]) -> Iterator[Problem]:
    """Problems of the named files: missing, of another length, or with another digest."""
    for name in names:
        place, path = Place(name), folder / name
        hint = _EDITED if path.suffix in _TEXTS else _HINT
        try:
            size = path.stat().st_size if path.is_file() else None
            if size is None:
                yield Problem(f"is named in {DIGESTS}, but is missing, or no file", place=place)
            elif size != digests[name].num_bytes:
                yield Problem(
                    f"is damaged: {digests[name].num_bytes:,} bytes were written, {size:,} are there",
                    place=place,
                    hint=hint,
                )
            elif digest_of(path) != digests[name]:
                yield Problem("is damaged: its bytes are not those that were written", place=place, hint=hint)
        except OSError as error:
            yield Problem(f"cannot be read: {error.strerror}", place=place)


def require_undamaged(folder: Path) -> None:
    """Compare every file of a folder with its digest, where there are digests. Raises UserError naming the files."""
    digests = read_digests(folder)
    if problems := list(differences(folder, digests, digests)) if digests else []:
        raise UserError(problems)


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Files as they were found: another one in their place, another length or time is noticed afterwards."""

    seen: Mapping[Path, tuple[int, ...]]

    @classmethod
    def of(cls, folder: Path) -> "Unchanged":
        """The files of a folder as they are now."""
        return cls.these(folder.iterdir())

    @classmethod
    def these(cls, paths: Iterable[Path]) -> "Unchanged":
        """Some files as they are now."""
        return cls({path: _look(path) for path in paths})

    def require(self) -> None:
        """Raise UserError naming the files that have changed: the data read may mix both versions."""
        changed = [path.name for path, look in self.seen.items() if _look(path) != look]
        if changed:
            message = "has changed while it was read, and the model may hold parts of both"
            raise UserError([Problem(message, place=Place(name), hint="load it again") for name in changed])


def _look(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
