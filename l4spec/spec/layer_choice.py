"""A field that holds a layer of whatever kind its author names: the kind alone is imported, not every one there is."""

from typing import Annotated, Any, NamedTuple, Union

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from l4spec.layers import KINDS, specs_for
from l4spec.layers.base import LayerSpec, Slot


class KindOf(NamedTuple):
    """Beside `LayerSpec` in an annotation: a layer of a kind that fits one of the slots.

    It accepts the same as a union of all their schemas discriminated by `kind`, and is that union in the JSON Schema.
    Problems are worded as pydantic words those of such a union.
    """

    slots: tuple[Slot, ...]

    @property
    def schemas(self) -> tuple[type[LayerSpec], ...]:
        """The schemas to choose from; every kind is imported."""
        return tuple(schema for slot in self.slots for schema in specs_for(slot))

    def read(self, value: Any) -> LayerSpec:
        """The layer that `value`, a mapping with a `kind` or a layer already, describes."""
        if isinstance(value, LayerSpec):
            name: Any = value.kind
        elif not isinstance(value, dict):
            raise PydanticKnownError("model_attributes_type")
        elif "kind" not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
        else:
            name = value["kind"]
        if not isinstance(name, str) or name not in KINDS or KINDS[name].slot not in self.slots:
            known = ", ".join(repr(kind.name) for slot in self.slots for kind in KINDS.values() if kind.slot == slot)
            context = {"discriminator": "'kind'", "tag": str(name), "expected_tags": known}
            raise PydanticKnownError("union_tag_invalid", context)
        return KINDS[name].spec.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        union: Any = Annotated[Union[self.schemas], Field(discriminator="kind")]
        return handler(TypeAdapter(union).core_schema)
