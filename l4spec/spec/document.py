"""Stage 1: YAML files to plain data with the place of every key. Checks the syntax of YAML, not the meaning of fields.

read_document("specs/scout.yaml")               one file as it stands
load_document("behemoth", ["text.hidden_size=8192"])    a spec with its parents and overrides merged in
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from l4spec.errors import Place, Problem, SpecError
from l4spec.library import find_spec
from l4spec.spec.files import MAX_BYTES, label, read_utf8
from l4spec.spec.merge import load_chain
from l4spec.spec.overrides import OPTION, override
from l4spec.spec.tree import Data, KeyPath, Tree, places, plain
from l4spec.spec.yaml_tree import compose

_MAPPING = "the mapping"
"""Name in messages of a spec that was given as a mapping."""


@dataclass(frozen=True, slots=True)
class Document:
    """Contents of one YAML document, with the source location of every entry.

    Every key path of `data` has a place: that of the key in a mapping, of the item in a list; `()` is the top.
    """

    data: dict[str, Data]
    places: Mapping[KeyPath, Place]
    source: Path | str
    """The file that was read, or the label of a text."""
    extends: tuple[Path, ...] = ()
    """The files merged in by `extends`, nearest parent first."""
    overridden: Mapping[KeyPath, Place] = field(init=False, compare=False, repr=False)
    """The places that are `--set` options."""

    def __post_init__(self) -> None:
        """Find the overrides once: a document may have thousands of places, and as many problems."""
        options = {path: place for path, place in self.places.items() if place.file.startswith(OPTION)}
        object.__setattr__(self, "overridden", options)


def read_document(path_or_name: str | Path) -> Document:
    """One YAML file as it stands, by path or shipped name; `extends` is left alone.

    Raises SpecError with all problems at once: a file that is no plain UTF-8 text of at most 1 MiB, no YAML, or YAML
    that different readers read differently.
    """
    path = find_spec(path_or_name)
    return _document(_read_tree(path), path)


def read_text(text: str, label: str) -> Document:
    """As `read_document`, for a given text; `label` stands for the file in messages."""
    if len(text) > MAX_BYTES:
        raise SpecError([Problem("expected at most 1 MiB of text", place=Place(label))])
    return _document(_composed(text, label), label)


def load_document(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Document:
    """Load a spec by path or shipped name, merge the documents it `extends`, and apply `overrides` (`path=value`).

    A spec without a `name` is called as its file. Raises SpecError as `read_document` does, for its parents too, and
    for overrides that lead nowhere.
    """
    path = find_spec(path_or_name)
    merged, parents = load_chain(path, _read_tree)
    return _document(override(_named(merged, path), overrides), path, parents)


def load_mapping(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> Document:
    """As `load_document`, for a spec as nested mappings and lists; files that it extends are beside the current folder.

    Raises SpecError also for values that YAML cannot express.
    """
    try:
        text = yaml.safe_dump(data if isinstance(data, dict) else dict(data), sort_keys=False)
    except yaml.YAMLError as error:
        raise SpecError([Problem(f"cannot be said in YAML: {error}", place=Place(_MAPPING))]) from None

    def read(path: Path) -> Tree:
        return _composed(text, _MAPPING) if path == Path(_MAPPING) else _read_tree(path)

    merged, parents = load_chain(Path(_MAPPING), read)
    return _document(override(_named(merged, Path("unnamed")), overrides), _MAPPING, parents)


def load_text(text: str, label: str, overrides: Sequence[str] = ()) -> Document:
    """As `load_document`, for a given text that extends nothing."""
    return _document(override(_composed(text, label), overrides), label)


def _read_tree(path: Path) -> Tree:
    return _composed(read_utf8(path), label(path))


def _composed(text: str, file: str) -> Tree:
    tree = compose(text, partial(Place, file))
    if not isinstance(tree.value, dict):
        problem = Problem("expected a mapping at the top", place=tree.place, hint="write `key: value` lines")
        raise SpecError([problem])
    return tree


def _named(tree: Tree, path: Path) -> Tree:
    assert isinstance(tree.value, dict)
    return tree if "name" in tree.value else Tree({"name": Tree(path.stem, tree.place), **tree.value}, tree.place)


def _document(tree: Tree, source: Path | str, extends: tuple[Path, ...] = ()) -> Document:
    data = plain(tree)
    assert isinstance(data, dict)
    return Document(data, places(tree), source, extends)
