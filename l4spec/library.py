"""Location of the shipped YAML specs, and the search that resolves a name or path from the command line to one file.

In the wheel they are package data in `l4spec/_specs`; in a source checkout they are the folder `specs` beside the
package.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from l4spec.errors import SpecError, nearest

SUFFIX = ".yaml"
_PACKAGE = Path(__file__).resolve().parent
_SHORT_FOLDER = "compare"
FOLDERS = {"scenario": "scenarios", "recipe": "recipes"}
"""Folders of shipped documents that are no specs of models, by kind. A bare name is never looked up in them."""
_MAX_SIBLINGS = 1000
_MAX_NAME = 200


def specs_folder() -> Path:
    """The folder that holds the shipped specs; it need not exist in a broken installation."""
    packaged = _PACKAGE / "_specs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "specs"


def shipped_documents() -> dict[str, Path]:
    """Every shipped document by its name (`scout`, `tiny/scout`, `scenarios/chat`), sorted by name."""
    folder = specs_folder()
    files = {path.relative_to(folder).as_posix().removesuffix(SUFFIX): path for path in folder.rglob(f"*{SUFFIX}")}
    return dict(sorted(files.items()))


def shipped_specs() -> dict[str, Path]:
    """Every shipped spec of a model by its name (`scout`, `tiny/scout`, `compare/llama-3.1-8b`), sorted by name."""
    others = tuple(f"{folder}/" for folder in FOLDERS.values())
    return {name: path for name, path in shipped_documents().items() if not name.startswith(others)}


def shipped_of(kind: str) -> dict[str, Path]:
    """Every shipped document of a kind of `FOLDERS` by its name (`scenarios/chat`), sorted by name."""
    return {name: path for name, path in shipped_documents().items() if name.startswith(f"{FOLDERS[kind]}/")}


def find_shipped(name: str) -> Path | None:
    """The shipped spec called `name`, or None. `.yaml`, a leading `specs/` and the folder `compare/` are optional."""
    if "\0" in name or len(name) > _MAX_NAME:
        return None
    parts = PurePosixPath(name).parts
    bare = "/".join(parts[1:] if parts[:1] == ("specs",) else parts).removesuffix(SUFFIX)
    if not bare or bare.startswith("/") or ".." in parts:
        return None
    folder = specs_folder()
    spellings = dict.fromkeys((bare, bare.lower()))  # shipped names are lower case
    candidates = (path for each in spellings for path in (folder / each, folder / _SHORT_FOLDER / each))
    files = (path.with_name(f"{path.name}{SUFFIX}") for path in candidates)
    return next((path for path in files if path.is_file()), None)


def find_spec(name_or_path: str | Path) -> Path:
    """The file meant by a path or by the name of a shipped spec; what exists at the path wins, folders aside.

    Raises SpecError, with the nearest known spelling, when there is neither.
    """
    name = os.fspath(name_or_path)
    path = find_beside(name, Path())
    if path is None:
        message, hint = missing(name, Path())
        raise SpecError(message, hint=hint)
    return path


def find_beside(name: str, folder: Path) -> Path | None:
    """As `find_spec`, for a `name` written in a file in `folder`; None when there is neither path nor spec."""
    path = folder / name
    if os.path.isfile(path) or _is_special(path):
        return path
    return find_shipped(name)


def missing(name: str, folder: Path) -> tuple[str, str]:
    """The error message and hint for a name that `find_beside` could not resolve."""
    shown = name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "…"
    if name and os.path.isdir(folder / name):
        return f"expected a spec, found the folder {shown!r}", _yaml_inside(folder / name)
    if not name:
        return "expected the name or the path of a spec, found nothing", ""
    return f"no spec named {shown!r}, neither a file nor a shipped spec", nearest(shown.lower(), _known(name, folder))


def _is_special(path: Path) -> bool:
    return os.path.exists(path) and not os.path.isdir(path)


def _known(name: str, folder: Path) -> Iterator[str]:
    """The names that `name` may have been meant to be: shipped ones, and YAML files in the folder it points at."""
    for known in shipped_documents():
        yield known
        yield known.removeprefix(f"{_SHORT_FOLDER}/")
    parent = os.path.dirname(name)
    yield from (os.path.join(parent, file) for file in _yaml_files(folder / parent))


def _yaml_files(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name for entry in islice(entries, _MAX_SIBLINGS) if entry.name.endswith((SUFFIX, ".yml"))
            )
    except (OSError, ValueError):
        return []


def _yaml_inside(folder: Path) -> str:
    files = _yaml_files(folder)
    return f"it holds {', '.join(files[:5])}{' …' if len(files) > 5 else ''}" if files else ""
