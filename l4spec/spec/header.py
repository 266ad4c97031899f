"""Header of every kind of document: version, name, parent, sources, estimated fields."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from l4spec.layers.base import AsTuple, Spec

NAME = r"^[A-Za-z0-9][A-Za-z0-9._ /-]{0,119}$"
Name = Annotated[str, Field(min_length=1, max_length=120, pattern=NAME)]


class Header(Spec):
    """Base of every kind of document.

    A kind other than a model's spec declares `kind: Literal["its name"]` besides; a document without `kind` is a spec.
    """

    l4spec: Literal[1]
    """Version of the spec language."""
    name: Name
    """Name of the document; by default the file's name."""
    extends: str | None = None
    """Shipped name or path of the document that this one changes."""
    description: str | None = None
    """One line for people."""
    sources: Annotated[tuple[str, ...], AsTuple] = ()
    """Sources of the numbers."""
    estimated: Annotated[tuple[str, ...], AsTuple] = ()
    """Paths of fields without a published value; every report marks the numbers that depend on them."""


def located(path: tuple[str | int, ...], message: str, hint: str = "") -> PydanticCustomError:
    """An error of a cross-field rule at a `path` below the model that checks it."""
    return PydanticCustomError("cross_field", "{message}", {"message": message, "path": path, "hint": hint})


__all__ = ["NAME", "Header", "Name", "located"]
