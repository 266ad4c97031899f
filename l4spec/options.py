"""Options declared once for the command line, Python arguments, suggested commands and the echo in JSON.

A class of options is a list of annotated fields and nothing else:

    class PlanRequest(Options):
        \"\"\"Options of `plan`.\"\"\"

        batch: Annotated[int, Option("Sequences at a time.", parse=read_count), Field(ge=1)] = 1

From it follow `PlanRequest(batch=4)` in Python, `PlanRequest.from_text({"batch": "4"})` for a command line (the
decorator `l4spec.cli.generated.takes` writes the options into a command's signature), `request.command_line()` for the
command as text, and `request.echo()` for a JSON document. Invalid values raise one `UserError` that lists all problems,
each with the name of its field; pydantic's own messages never reach a user.

A new command takes the options of a class like this:

    @app.command("search")
    @takes(SearchRequest)
    def search_command(spec: o.SpecArgument, request: SearchRequest, out: o.OutOption = None) -> None: ...

Options of an existing class are shared by inheritance: `class SearchRequest(PlanRequest)` with further fields.
`takes(PlanRequest, refuse={"gpus": "each claim names its own hardware"})` parses an option and refuses it by name.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from l4spec.errors import Problem, UserError, nearest
from l4spec.units import parse_bytes, parse_count, parse_quantity

Mode = Literal["serve", "train"]


def read_count(text: str) -> int:
    """A whole number as `8` or `1k`. Raises ValueError."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return parse_count(text)
    except ValueError:
        raise ValueError(f"expected a whole number, found {_short(text)}") from None


read_tokens = parse_count
"""A number of tokens as `8192`, `100k`, `1M` or `128Ki`. Raises ValueError."""


def read_number(text: str) -> float:
    """A number as `0.9`. Raises ValueError."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number, found {_short(text)}") from None


def read_memory(text: str) -> str:
    """A size above 0 with its unit, as `128GB` or `256 GiB`, kept as it is written. Raises ValueError."""
    if parse_bytes(text) <= 0:
        raise ValueError(f"expected a size above 0, found {text!r}")
    return text


def read_bandwidth(text: str) -> str:
    """Bytes per second above 0 with their unit, as `89.6GB/s`, kept as they are written. Raises ValueError."""
    if parse_quantity(text, "B/s") <= 0:
        raise ValueError(f"expected a rate above 0, found {text!r}")
    return text


class Option(NamedTuple):
    """Description of a field as a command-line option.

    `parse` converts its text and raises ValueError with what it expected. `flags` replace the flag derived from the
    field's name. `mode` restricts the option to serving or to training. `default` is shown where the field's own
    default says too little. `expects` describes a valid number where bounds alone do not. `too_large` is the hint for a
    value beyond the upper bound, and `renamed` maps former spellings of a value to the current ones.
    """

    help: str
    metavar: str = "N"
    flags: tuple[str, ...] = ()
    parse: Callable[[str], Any] = str
    mode: Mode | None = None
    default: str = ""
    expects: str = ""
    too_large: str = ""
    renamed: Mapping[str, str] = MappingProxyType({})

    def names(self, field: str) -> tuple[str, ...]:
        """The spellings of the option, the long one first."""
        return self.flags or ("--" + field.replace("_", "-"),)


class Options(BaseModel):
    """Base of every class of options: strict types, frozen, unknown names refused. Raises UserError, never pydantic's.

    `model_fields_set` are the options that were given.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    def __init__(self, **given: Any) -> None:
        """Set options by field; strings for fields of other types are parsed as on the command line: `context="1M"`."""
        values, problems = _read(type(self), given)
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems += _problems(type(self), error)
        if problems:
            raise UserError(problems)

    @classmethod
    def from_text(cls, texts: Mapping[str, str], **given: Any) -> Self:
        """Construct from command-line texts by field, and from further values as they are."""
        return cls(**given, **texts)

    def changed(self, **values: Any) -> Self:
        """The same options with other values, checked."""
        return type(self)(**{**self.echo(), **values})

    def echo(self) -> dict[str, Any]:
        """The given options, in the order of the fields; the class reconstructs the request from them."""
        given = self.model_fields_set
        values = {name: getattr(self, name) for name in type(self).model_fields if name in given}
        return {name: value for name, value in values.items() if value is not None}

    def command_line(self) -> str:
        """Every option that differs from its default, as command-line text."""
        return " ".join(self._words())

    def _words(self) -> Iterator[str]:
        from shlex import quote

        given, fields = self.model_fields_set, type(self).model_fields
        for name in (name for name in fields if name in given):  # what was not given has its default
            value = getattr(self, name)
            if value == fields[name].default:
                continue
            flag = option_of(type(self), name).names(name)[0]
            yield flag if value is True else f"{flag} {quote(str(value))}"


@lru_cache(maxsize=1024)
def option_of(cls: type[Options], name: str) -> Option:
    """The command-line option of a field."""
    return next(part for part in cls.model_fields[name].metadata if isinstance(part, Option))


@lru_cache(maxsize=1024)
def flag_of(cls: type[Options], name: str) -> str:
    """The long spelling of a field's option: `--kv-dtype`."""
    return option_of(cls, name).names(name)[0]


def _read(cls: type[Options], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Values with strings parsed for fields of other types, and the problems of those that cannot be parsed."""
    values: dict[str, Any] = {}
    problems = []
    for name, value in given.items():
        try:
            values[name] = option_of(cls, name).parse(value) if _is_written(cls, name, value) else value
        except ValueError as error:
            problems.append(Problem(str(error), path=name))
    return values, problems


def _is_written(cls: type[Options], name: str, value: object) -> bool:
    return isinstance(value, str) and name in cls.model_fields and option_of(cls, name).parse is not str


def _problems(cls: type[Options], error: ValidationError) -> Iterator[Problem]:
    details = {str(detail["loc"][0]): detail for detail in error.errors(include_url=False)}  # a union gives several
    for name, detail in details.items():
        value = detail["input"]
        if detail["type"] == "extra_forbidden":
            yield Problem(f"unknown option {name!r}", hint=nearest(name, cls.model_fields))
        else:
            yield _problem(name, cls.model_fields[name], option_of(cls, name), value)


def _problem(name: str, field: FieldInfo, option: Option, value: object) -> Problem:
    """A validation error as a problem: the type or range of the field, and the given value."""
    choices = () if option.expects else _choices(field)
    if choices:
        hint = option.renamed.get(str(value)) or nearest(str(value), choices)
        return Problem(f"unknown {name} {_short(value)}", path=name, hint=hint)
    low, high = (_bound(field, side) for side in ("ge", "le"))
    kind = _kind(field)
    if option.expects:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        hint = option.too_large if isinstance(value, int) and is_whole and value > 0 else ""
        there = f"{value:,}" if is_whole else _short(value)
        return Problem(f"expected {option.expects}, found {there}", path=name, hint=hint)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        most = f" to {high:,}" if high is not None else " or more"
        hint = option.too_large if high is not None and value > high else ""
        return Problem(f"expected {low:,}{most}, found {value:,}", path=name, hint=hint)
    expected = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a name")
    return Problem(f"expected {expected}, found {_short(value)}", path=name)


def _kind(field: FieldInfo) -> type:
    """The type of a field's values, without None."""
    kinds = [kind for kind in (*get_args(field.annotation), field.annotation) if kind in (int, float, bool, str)]
    return kinds[0] if kinds else str


def _choices(field: FieldInfo) -> tuple[str, ...]:
    literals = [field.annotation, *get_args(field.annotation)]
    return tuple(word for part in literals for word in get_args(part) if isinstance(word, str))


def _bound(field: FieldInfo, side: str) -> int | None:
    return next((getattr(part, side) for part in field.metadata if hasattr(part, side)), None)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
