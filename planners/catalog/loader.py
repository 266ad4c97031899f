"""The planner's catalogues by name: hardware, engines and fitted factors are here, quantization schemes in l4spec."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeVar

from l4spec.catalog.entry import Entry
from l4spec.catalog.registry import Registry, looks_like_path
from l4spec.errors import UserError
from l4spec.quantization.scheme import SCHEMES
from planners.catalog.user_catalog import THIS_MACHINE, find_own

Folder = Literal[
    "hardware",
    "quantization",
    "engines",
    "efficiency",
    "schedulers",
    "prices",
    "expert_load",
    "grouped_matmul",
    "static_batch",
]
E = TypeVar("E", bound=Entry)

_HERE = Path(__file__).parent
SHELVES: Mapping[Folder, Registry] = {
    "hardware": Registry(_HERE / "hardware", "hardware"),
    "quantization": SCHEMES,
    "engines": Registry(_HERE / "engines", "engine"),
    "efficiency": Registry(_HERE / "efficiency", "set of fitted factors"),
    "schedulers": Registry(_HERE / "schedulers", "scheduler"),
    "prices": Registry(_HERE / "prices", "price list"),
    "expert_load": Registry(_HERE / "expert_load", "expert load"),
    "grouped_matmul": Registry(_HERE / "grouped_matmul", "set of grouped-matmul laws"),
    "static_batch": Registry(_HERE / "static_batch", "set of factors of static batches"),
}


def load(folder: Folder, schema: type[E], text: str) -> E:
    """The entry that `text` names: a shipped name or alias, a path to a YAML file, or `NAME` for an own `NAME.yaml`.

    A user's file is in the current folder; one of hardware or of an engine may also be in the user's catalogue. Raises
    UserError for an unknown name, with the nearest known one, and for a file that does not fit the schema.
    """
    name, shelf = text.strip(), SHELVES[folder]
    if folder in ("hardware", "engines") and not looks_like_path(name) and shelf.find(name) is None:
        own = find_own(folder, name)
        if own is None:
            raise unknown(folder, name)
        return shelf.load(schema, str(own))
    return shelf.load(schema, text)


def unknown(folder: Folder, text: str) -> UserError:
    """The error for a name that nothing in `folder` has."""
    if folder == "hardware" and text.strip().lower() == THIS_MACHINE:
        return UserError(f"no hardware is called {THIS_MACHINE!r} yet", hint="run `l4spec calibrate` on this machine")
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
