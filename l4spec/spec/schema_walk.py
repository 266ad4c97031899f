"""Finds the schema at a path of a document, to suggest the field that an author may have meant."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from l4spec.layers import KINDS
from l4spec.layers.base import LayerSpec


def schema_at(root: type[BaseModel], data: Any, path: Sequence[str | int]) -> type[BaseModel] | None:
    """The model that describes the mapping at `path` of `data`; None if none does, as inside a scalar."""
    annotation: Any = root
    for step in path:
        annotation = _step(_chosen(annotation, data), step)
        data = _child(data, step)
    chosen = _chosen(annotation, data)
    return chosen if isinstance(chosen, type) and issubclass(chosen, BaseModel) else None


def _child(data: Any, step: str | int) -> Any:
    if isinstance(data, Mapping):
        return data.get(step)
    return data[step] if isinstance(data, list) and isinstance(step, int) and step < len(data) else None


def _step(annotation: Any, step: str | int) -> Any:
    """The annotation of one step further in."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(step))
        return field.annotation if field else None
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if get_origin(annotation) is tuple else None


def _chosen(annotation: Any, data: Any) -> Any:
    """The member of a union that fits `data` by its `kind` or its keys, or the annotation itself."""
    members = list(_members(annotation))
    if members == [LayerSpec] and isinstance(data, Mapping) and data.get("kind") in KINDS:
        return KINDS[data["kind"]].spec
    if len(members) == 1:
        return members[0]
    models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    if isinstance(data, Mapping):
        kind = data.get("kind")
        by_kind = [model for model in models if kind in _kinds(model)]
        if by_kind:
            return by_kind[0]
        return max(models, key=lambda model: len(model.model_fields.keys() & data.keys()), default=None)
    return next((member for member in members if get_origin(member) in (dict, tuple)), None)


def _members(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        for member in get_args(annotation):
            yield from _members(member)
    elif annotation is not type(None) and annotation is not None:
        yield annotation


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()
