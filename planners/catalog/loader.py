"""The planner's catalogues by name: hardware, engines and fitted factors lie here, quantization schemes in l4spec."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from l4spec.catalog.entry import Entry
from l4spec.catalog.shelf import Shelf
from l4spec.errors import UserError
from l4spec.quantization.scheme import SCHEMES

Folder = Literal["hardware", "quantization", "engines", "efficiency"]
E = TypeVar("E", bound=Entry)

_HERE = Path(__file__).parent
SHELVES: Mapping[Folder, Shelf] = {
    "hardware": Shelf(_HERE / "hardware", "hardware"),
    "quantization": SCHEMES,
    "engines": Shelf(_HERE / "engines", "engine"),
    "efficiency": Shelf(_HERE / "efficiency", "set of fitted factors"),
}


def load(folder: Folder, schema: type[E], text: str) -> E:
    """The entry that `text` names: a shipped name or alias, a path to a YAML file, or `NAME` for a file `./NAME.yaml`.

    Raises UserError for an unknown name, with the nearest known one, and for a file that does not fit the schema.
    """
    return SHELVES[folder].load(schema, text)


def unknown(folder: Folder, text: str) -> UserError:
    """The error for a name that nothing in `folder` has."""
    return SHELVES[folder].unknown(text)


def shipped_names(folder: Folder) -> tuple[str, ...]:
    """The names of all shipped entries, sorted; reads no file."""
    return SHELVES[folder].names


def known_names(folder: Folder) -> tuple[str, ...]:
    """All shipped names and aliases, sorted."""
    return SHELVES[folder].known_names


def find_shipped(folder: Folder, text: str) -> str | None:
    """The shipped entry that `text` names in any spelling of case, blanks and underscores, or None."""
    return SHELVES[folder].find(text)
