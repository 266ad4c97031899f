"""From lists of values to variants of a spec: every combination, linked fields following, each a checked spec."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from l4spec.errors import Place, Problem, UserError
from l4spec.huggingface.opening import open_document
from l4spec.spec.document_kinds import parse_as
from l4spec.spec.model import ModelSpec
from l4spec.spec.overrides import key_path
from l4spec.spec.widen import read_factor, widen

MOST_VARIANTS = 10_000
_KNOWN_LINKS = {"vision.projector.output_size": "text.hidden_size"}
"""Fields that a spec requires to be equal, the one that follows first."""


@dataclass(frozen=True, slots=True)
class SweptField:
    """A field of the spec and the values that it takes in turn, as a document writes them."""

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A field that has the value of another one in every variant."""

    path: str
    source: str


@dataclass(frozen=True, slots=True)
class SweptVariant:
    """One combination of values: its spec, or why there is none."""

    settings: tuple[tuple[str, str], ...]
    widen: Fraction
    spec: ModelSpec | None = None
    problems: tuple[Problem, ...] = ()


def read_axes(texts: Iterable[str] | Mapping[str, Sequence[object]]) -> tuple[SweptField, ...]:
    """Lists of values from `path=8,16,32`, or from a mapping of paths to values. Raises UserError.

    Commas within brackets, braces and quotes belong to a value.
    """
    if isinstance(texts, Mapping):
        single = [path for path, values in texts.items() if isinstance(values, str) or not isinstance(values, Sequence)]
        if single:
            raise UserError([Problem("expected a list of values", path, hint="as [8, 16, 32]") for path in single])
        axes = [SweptField(path, tuple(json.dumps(value) for value in values)) for path, values in texts.items()]
    else:
        axes = [
            SweptField(path.strip(), tuple(_values(values))) for path, _, values in (t.partition("=") for t in texts)
        ]
    problems = list[Problem]()
    for number, axis in enumerate(axes):
        key_path(axis.path)
        if not axis.values or not all(value.strip() for value in axis.values):
            problems.append(
                Problem("expected values with commas between them", axis.path, hint="as --set PATH=8,16,32")
            )
        if axis.path in [other.path for other in axes[:number]]:
            problems.append(Problem("is given twice", axis.path, hint="put all values into one list"))
    if problems:
        raise UserError(problems)
    return tuple(replace(axis, values=tuple(dict.fromkeys(value.strip() for value in axis.values))) for axis in axes)


def read_links(texts: Iterable[str] | Mapping[str, str]) -> tuple[Link, ...]:
    """Links from `path=other.path`, or from a mapping. Raises UserError."""
    pairs = texts.items() if isinstance(texts, Mapping) else [_pair(text) for text in texts]
    links = tuple(Link(path.strip(), source.strip()) for path, source in pairs)
    for link in links:
        key_path(link.path)
        key_path(link.source)
    return links


def _pair(text: str) -> tuple[str, str]:
    path, _, source = text.partition("=")
    if not source.strip():
        hint = "as --link vision.projector.output_size=text.hidden_size"
        raise UserError([Problem(f"expected two fields, found {text[:80]!r}", place=Place("--link"), hint=hint)])
    return path, source


def read_factors(text: str | Sequence[float | str]) -> tuple[Fraction, ...]:
    """Factors of width from `1,1.5` or from numbers. Raises UserError."""
    words = text.split(",") if isinstance(text, str) else [str(value) for value in text]
    try:
        return tuple(dict.fromkeys(map(read_factor, words)))
    except ValueError as error:
        raise UserError([Problem(str(error), place=Place("--widen"))]) from None


def _values(text: str) -> Iterator[str]:
    """Pieces between commas that are in no bracket, brace or quote."""
    depth, quote, piece = 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not quote and depth <= 0:
            yield piece
            piece = ""
        else:
            piece += letter
    yield piece


def variants_of(
    model: str | Path, axes: Sequence[SweptField], links: Sequence[Link], factors: Sequence[Fraction]
) -> list[SweptVariant]:
    """Every combination, the last list varying fastest. Raises UserError where there are too many or none is valid."""
    count = len(factors)
    for axis in axes:
        count *= len(axis.values)
    if count > MOST_VARIANTS:
        hint = "give fewer values, or several sweeps"
        raise UserError(f"{count:,} variants are too many: {MOST_VARIANTS:,} are the most", hint=hint)
    base, _ = open_document(model)
    parse_as(base, ModelSpec)  # what is wrong without any change is no variant's problem
    settings = product(*([(axis.path, value) for value in axis.values] for axis in axes))
    return [_variant(model, tuple(setting), links, factor) for setting, factor in product(settings, factors)]


def _variant(
    model: str | Path, settings: tuple[tuple[str, str], ...], links: Sequence[Link], factor: Fraction
) -> SweptVariant:
    changes = [f"{path}={value}" for path, value in settings]
    try:
        for link in links:
            document, _ = open_document(model, changes)
            changes.append(f"{link.path}={json.dumps(_value_at(document.data, link))}")
        document, _ = open_document(model, changes)
        return SweptVariant(settings, factor, widen(parse_as(document, ModelSpec), factor))
    except UserError as error:
        return SweptVariant(settings, factor, problems=tuple(map(_linking, error.problems)))
    except ValidationError as error:
        message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        return SweptVariant(settings, factor, problems=(Problem(f"cannot be widened by {float(factor):g}: {message}"),))


def _value_at(data: Any, link: Link) -> object:
    """The value of the field that a link follows. Raises UserError if the document has none."""
    for step in key_path(link.source):
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            message = f"nothing is written at {link.source}, which it is linked to"
            raise UserError([Problem(message, link.path, hint=f"--set {link.source} too")]) from None
    return data


def _linking(problem: Problem) -> Problem:
    """A problem of fields that have to be equal, with the link that keeps them so."""
    source = _KNOWN_LINKS.get(problem.path)
    return problem if source is None else problem._replace(hint=f"--link {problem.path}={source}")
