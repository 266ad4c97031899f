"""Options of a command, written by the class that they make: `takes` puts them into its signature for typer."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import typer
from pydantic.fields import FieldInfo

from l4spec.cli.completion import OF_OPTIONS
from l4spec.errors import Problem, UserError
from l4spec.options import Options, flag_of, option_of

T = TypeVar("T", bound=Options)
NOTHING: Mapping[str, str] = MappingProxyType({})


def takes(
    cls: type[Options], refuse: Mapping[str, str] = NOTHING
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `cls` instead of its parameter `request`.

    The command gets one object. Options named in `refuse` are read, left out of the help, and refused with the reason.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**parameters: Any) -> None:
            values = {name: parameters.pop(name) for name in cls.model_fields}
            given = {name: value for name, value in values.items() if value not in (None, False)}
            with options_named(cls):
                request = read_options(cls, given, refuse)
                command(request=request, **parameters)

        signature = inspect.signature(command)
        run.__signature__ = signature.replace(parameters=[*_parameters(cls, signature, refuse)])  # type: ignore[attr-defined]
        run.__annotations__ = {name: p.annotation for name, p in run.__signature__.parameters.items()}  # type: ignore[attr-defined]
        return run

    return decorate


def read_options(cls: type[T], given: Mapping[str, Any], refuse: Mapping[str, str]) -> T:
    """The options of a command line, all problems at once."""
    refused = [Problem(refuse[name], path=name) for name in given if name in refuse]
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    flags = {name: value for name, value in given.items() if not isinstance(value, str)}
    try:
        request = cls.from_text(texts, **flags)
    except UserError as error:
        raise UserError([*refused, *error.problems]) from None
    if refused:
        raise UserError(refused)
    return request


def _parameters(
    cls: type[Options], signature: inspect.Signature, refuse: Mapping[str, str]
) -> Iterator[inspect.Parameter]:
    for name, parameter in signature.parameters.items():
        if name != "request":
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        for field_name, field in cls.model_fields.items():
            yield inspect.Parameter(
                field_name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if field.annotation is bool else None,
                annotation=_annotation(cls, field_name, field, hidden=field_name in refuse),
            )


def _annotation(cls: type[Options], name: str, field: FieldInfo, *, hidden: bool) -> Any:
    option = option_of(cls, name)
    default = option.default or ("" if field.default is None or field.annotation is bool else str(field.default))
    info = typer.Option(
        *option.names(name),
        metavar=None if field.annotation is bool else option.metavar,
        help=f"{option.help}  [default: {default}]" if default else option.help,
        hidden=hidden,
        show_default=False,
        autocompletion=OF_OPTIONS.get(name),
    )
    return Annotated[bool, info] if field.annotation is bool else Annotated[str | None, info]


@contextmanager
def options_named(cls: type[Options]) -> Iterator[None]:
    """Inside, problems of fields are named as options are typed."""
    try:
        yield
    except UserError as error:
        named = [_in_options(cls, problem) for problem in error.problems]
        raise type(error)(named) from None


def _in_options(cls: type[Options], problem: Problem) -> Problem:
    return problem._replace(path=flag_of(cls, problem.path)) if problem.path in cls.model_fields else problem
