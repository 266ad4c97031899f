"""A field whose schema is imported only for documents that have the field, not for every document of its kind."""

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema


class PartOf(NamedTuple):
    """Beside `Any` in an annotation: a part of a document by the place of its schema, as `module:Class`.

    Documents and the JSON Schema are those of the class. Type checkers read the class itself:

        if TYPE_CHECKING:
            from planners.catalog.cpu_profile import EagerTimes
        else:
            EagerTimes = Annotated[Any, PartOf("planners.catalog.cpu_profile:EagerTimes")]
    """

    place: str

    @property
    def schema(self) -> type[BaseModel]:
        """The class, imported now."""
        return _schema_at(self.place)

    def read(self, value: Any) -> BaseModel:
        """The part as a document writes it, or an object of the class already."""
        schema = _schema_at(self.place)
        return value if isinstance(value, schema) else schema.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(TypeAdapter(self.schema).core_schema)


@cache
def _schema_at(place: str) -> type[BaseModel]:
    module, _, name = place.partition(":")
    schema: type[BaseModel] = getattr(import_module(module), name)
    return schema
