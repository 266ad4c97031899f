"""Base of catalogue entries: a name, aliases, and numbers with their sources."""

from functools import cached_property
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, model_validator

from l4spec.layers.base import AsTuple, Spec

T = TypeVar("T")
Source = Annotated[str, Field(min_length=3, max_length=600)]
"""A public document: a datasheet by name, a repository and path, an issue number."""


class Sourced(Spec, Generic[T]):
    """A number with its source document; `note` has the derivation if it was not copied as printed."""

    value: T
    source: Source
    note: str = ""


class Entry(Spec):
    """Base of one YAML file of the catalogue.

    A document that several numbers share is named once under `sources:` and then cited by its key; a `source` that is
    neither such a key nor a phrase is refused.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    aliases: Annotated[tuple[str, ...], AsTuple] = ()
    """Other spellings, lower case with `-` between words."""
    description: Annotated[str, Field(min_length=1)]

    @cached_property
    def _structural_hash(self) -> int:
        fields = (getattr(self, name) for name in type(self).model_fields)
        return hash(tuple(tuple(field.items()) if isinstance(field, dict) else field for field in fields))

    def __hash__(self) -> int:
        """The hash of all fields, computed once: entries are keys of the planner's caches."""
        return self._structural_hash

    @model_validator(mode="before")
    @classmethod
    def _cite(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "sources" not in data:
            return data
        sources = data["sources"]
        if not isinstance(sources, dict) or not all(isinstance(text, str) for text in sources.values()):
            raise ValueError("`sources` maps short keys to documents")
        return _cited({key: value for key, value in data.items() if key != "sources"}, sources)


def _cited(value: Any, sources: dict[str, str]) -> Any:
    """`value` with every `source: key` replaced by its document."""
    if isinstance(value, list):
        return [_cited(item, sources) for item in value]
    if not isinstance(value, dict):
        return value
    cited = {key: _cited(item, sources) for key, item in value.items()}
    source = cited.get("source")
    if isinstance(source, str):
        if source not in sources and " " not in source:
            raise ValueError(f"source '{source}' is not a key of `sources`, which has: {', '.join(sources)}")
        cited["source"] = sources.get(source, source)
    return cited
