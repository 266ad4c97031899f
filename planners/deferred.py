"""Lazily computed parts of a plan, for parts that are expensive and rarely needed."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar, get_args, overload

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

Item_co = TypeVar("Item_co", covariant=True)


class Deferred(Sequence[Item_co], Generic[Item_co]):
    """A sequence that is computed when it is first read; in documents a list, read when it is written."""

    def __init__(self, work_out: Callable[[], tuple[Item_co, ...]]) -> None:
        self._work_out = work_out

    @cached_property
    def _all(self) -> tuple[Item_co, ...]:
        return self._work_out()

    @overload
    def __getitem__(self, index: int) -> Item_co: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Item_co, ...]: ...
    def __getitem__(self, index: int | slice) -> Item_co | tuple[Item_co, ...]:
        return self._all[index]

    def __len__(self) -> int:
        return len(self._all)

    def __eq__(self, other: object) -> bool:
        return self._all == (other._all if isinstance(other, Deferred) else other)

    def __hash__(self) -> int:
        return hash(self._all)

    def __repr__(self) -> str:
        return repr(self._all)

    def __reduce__(self) -> tuple[Any, ...]:
        return Deferred.of, (self._all,)

    @classmethod
    def of(cls, items: "tuple[Item_co, ...]") -> "Deferred[Item_co]":
        """Items that are known."""
        return cls(lambda: items)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        known = handler.generate_schema(tuple[get_args(source)[0], ...])  # type: ignore[misc]
        read = core_schema.no_info_after_validator_function(cls.of, known)
        written = core_schema.plain_serializer_function_ser_schema(lambda value: value._all, return_schema=known)
        return core_schema.json_or_python_schema(
            read, core_schema.union_schema([core_schema.is_instance_schema(cls), read]), serialization=written
        )
