"""Catalog entries by name or path: the fast loader for shipped files, the strict parser (line, column) for users'."""

import os
import re
from collections.abc import Mapping
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from l4spec.catalog.entry import Entry
from l4spec.errors import Place, Problem, UserError, nearest

E = TypeVar("E", bound=Entry)

_LOADER: "type[yaml.SafeLoader] | type[yaml.CSafeLoader]" = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LONGEST_NAME = 255


class Registry:
    """A folder of YAML files; `noun` is the name of an entry in errors."""

    def __init__(self, path: Path, noun: str) -> None:
        self.path = path
        self.noun = noun

    def load(self, schema: type[E], text: str) -> E:
        """The entry that `text` names: a shipped name or alias, a path to a YAML file, or `NAME` for `./NAME.yaml`.

        Raises UserError for an unknown name, with the nearest known one, and for a file that does not fit the schema.
        """
        text = text.strip()
        if looks_like_path(text):
            return _read_own(schema, Path(text))
        stem = self.find(text)
        if stem is not None:
            shipped = _load_shipped(self.path, stem, schema)
            assert isinstance(shipped, schema)
            return shipped
        own = find_beside(text)
        if own is not None:
            return _read_own(schema, own)
        raise self.unknown(text)

    def unknown(self, text: str) -> UserError:
        """The error for a name that nothing here has; one with another number is no slip: int3 is not int8."""
        shown = text if len(text) <= 60 else text[:60] + "…"
        name = normal(text)[:_LONGEST_NAME]
        others = {self.find(known) for known in self.known_names if _is_another_number(known, name)}
        hint = nearest(name, (known for known in self.known_names if self.find(known) not in others))
        if not hint.startswith("did you mean"):
            hint = f"one of: {', '.join(self.names)}, or a path to a YAML file"
        return UserError(f"no {self.noun} is called {shown!r}", hint=hint)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all shipped entries, sorted; reads no file."""
        return tuple(sorted(path.stem for path in self.path.glob("*.yaml")))

    @property
    def known_names(self) -> tuple[str, ...]:
        """All shipped names and aliases, sorted."""
        return tuple(sorted({*self.names, *self.aliases}))

    def find(self, text: str) -> str | None:
        """The shipped entry that `text` names in any spelling of case, blanks and underscores, or None."""
        name = normal(text)
        return name if name in self._name_set else self.aliases.get(name)

    @cached_property
    def _name_set(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def aliases(self) -> Mapping[str, str]:
        """Alias to name, from the `aliases:` line of each file: finding one entry must not parse them all."""
        files: dict[str, str] = {}
        for path in sorted(self.path.glob("*.yaml")):
            with path.open(encoding="utf-8") as file:
                line = next((line for line in file if line.startswith("aliases:")), "")
            listed = line.partition("[")[2].partition("]")[0]
            files.update((alias.strip(" \"'\n"), path.stem) for alias in listed.split(",") if alias.strip())
        return files


def find_beside(text: str) -> Path | None:
    """`./TEXT.yaml` when there is such a file and `text` is a bare name, or None."""
    if not text or len(text) > _LONGEST_NAME - 5 or text.startswith("."):
        return None
    name = f"{text}.yaml"  # asked for every plan: a string until it is known to be a file
    is_name = os.path.basename(name) == name and "\0" not in name
    return Path(name) if is_name and os.path.isfile(name) else None


def looks_like_path(text: str) -> bool:
    """True if `text` can only be a path: it has a separator or a YAML suffix."""
    return "/" in text or "\\" in text or text.lower().endswith((".yaml", ".yml"))


@lru_cache(maxsize=1024)
def normal(text: str) -> str:
    """`H100_SXM` and `h100 sxm` as `h100-sxm`."""
    return "-".join(text.lower().replace("_", " ").replace("-", " ").split())


@cache
def _load_shipped(folder: Path, stem: str, schema: type[Entry]) -> Entry:
    return schema.model_validate(yaml.load((folder / f"{stem}.yaml").read_text(encoding="utf-8"), Loader=_LOADER))


def _read_own(schema: type[E], path: Path) -> E:
    """A user's file, read strictly: every problem with its line and column."""
    from l4spec.spec.document import read_text
    from l4spec.spec.files import label, read_utf8

    document = read_text(read_utf8(path), label(path))
    try:
        return schema.model_validate(document.data)
    except ValidationError as error:
        raise UserError(
            [_problem(schema, document.data, document.places, error_details) for error_details in error.errors()]
        ) from None


def _problem(schema: type[Entry], data: Any, places: Mapping[Any, Place], details: Mapping[str, Any]) -> Problem:
    from l4spec.spec.parse import written_path
    from l4spec.spec.tree import dotted

    path = written_path(data, details["loc"])
    near = path
    while near and near not in places:
        near = near[:-1]
    message = str(details["msg"]).removeprefix("Value error, ")
    hint = nearest(str(path[-1]), _field_names(schema)) if details["type"] == "extra_forbidden" and path else ""
    return Problem(message, path=dotted(path), place=places.get(near), hint=hint)


def _field_names(schema: type[Entry]) -> set[str]:
    """Every key that a file of this kind may hold at any depth."""
    top = schema.model_json_schema()
    objects = [top, *top.get("$defs", {}).values()]
    return {key for item in objects for key in item.get("properties", {})} | {"sources"}


def _is_another_number(known: str, name: str) -> bool:
    """True if two names differ in digits alone, and not only in their order."""
    one, other = (each.replace("-", "") for each in (known, name))
    same_letters = re.sub(r"[0-9]", "0", one) == re.sub(r"[0-9]", "0", other)
    return same_letters and sorted(one) != sorted(other)
