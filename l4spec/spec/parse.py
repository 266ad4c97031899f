"""From a `Document` to a root schema: every error with its place, path, expectation and nearest spelling."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from l4spec.errors import MAX_PROBLEMS, Place, Problem, SpecError, nearest
from l4spec.layers import KINDS
from l4spec.layers.base import WIDEST
from l4spec.spec.document import Document
from l4spec.spec.files import label
from l4spec.spec.header import Header
from l4spec.spec.model import SLOTS_OF_BLOCKS, ModelSpec
from l4spec.spec.schema_walk import schema_at
from l4spec.spec.tree import dotted
from l4spec.spec.yaml_tree import MAX_NODES

Path = tuple[str | int, ...]
Root = TypeVar("Root", bound=Header)
Finder = Callable[[Document], Iterator[Problem]]
UNION_TAGS = frozenset(("group", "block", "token_count", "distribution", "short_form", "long_form"))
"""Names of members of unions that pydantic puts into locations; no field of a schema is called so."""
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
}

_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_LENGTHS = {
    "too_short": ("at least", "min_length", "entry", "entries"),
    "too_long": ("at most", "max_length", "entry", "entries"),
    "string_too_short": ("at least", "min_length", "character", "characters"),
    "string_too_long": ("at most", "max_length", "character", "characters"),
}
_OF_ONE_VALUE = frozenset(
    ("extra_forbidden", "missing", "union_tag_not_found", "union_tag_invalid", "literal_error", *_EXPECTED, *_BOUNDS)
)
"""Errors that do not depend on how long lists are."""
_MOST_ERRORS, _CUT_LENGTH = 10_000, 1_000
_WIDEST_HINT = "the most that a published layer has side by side are the 1,048,576 experts of arXiv:2407.04153"


def parse_spec(document: Document) -> ModelSpec:
    """The document as a `ModelSpec`. Raises SpecError with all problems at once."""
    return parse(document, ModelSpec, _unknown_parts)


def parse(document: Document, root: type[Root], also: Finder | None = None) -> Root:
    """The document as an instance of `root`, the schema of a kind of document.

    Raises SpecError with all problems at once: those of the schema, and those that `also` finds by itself when fields
    elsewhere keep the schema's own rules from being asked.
    """
    try:
        parsed = root.model_validate(document.data)
    except ValidationError as error:
        raise SpecError(dict.fromkeys(_schema_problems(root, document, error, also))) from None
    problems = list(islice(_unknown_estimates(document, parsed), MAX_PROBLEMS + 2))
    if problems:
        raise SpecError(problems)
    return parsed


def _schema_problems(
    root: type[Header], document: Document, error: ValidationError, also: Finder | None
) -> list[Problem]:
    """The first problems in reading order, a few more than are reported, since formatting each takes time."""
    details = [(_path_of(document, each), each) for each in _details(root, document, error)]
    details.sort(key=lambda pair: _reading_order(place_of(document, pair[0])))
    first = details[: 2 * MAX_PROBLEMS]  # some may say the same
    elsewhere = _Elsewhere(document.data)
    problems = [_problem(root, document, elsewhere, path, each) for path, each in first]
    if also is not None:
        seen = {problem.path for problem in problems}
        problems += islice((problem for problem in also(document) if problem.path not in seen), MAX_PROBLEMS + 2)
    return sorted(problems, key=lambda problem: _reading_order(problem.place))


def _details(root: type[Header], document: Document, error: ValidationError) -> list[ErrorDetails]:
    """pydantic's errors; where there are very many, which take a kilobyte each, those of a shorter document.

    Its lists are cut, to the first length at which something is wrong. Errors that depend on a whole list are left out
    then.
    """
    most = _CUT_LENGTH if error.error_count() > _MOST_ERRORS else MAX_NODES
    while most < MAX_NODES:
        try:
            root.model_validate(_cut(document.data, most))
        except ValidationError as shorter:
            if details := [each for each in shorter.errors(include_url=False) if each["type"] in _OF_ONE_VALUE]:
                return details
        most *= 2
    return error.errors(include_url=False)


def _cut(data: Any, most: int) -> Any:
    """The same with at most so many entries in each list."""
    if isinstance(data, dict):
        return {key: _cut(value, most) for key, value in data.items()}
    return [_cut(value, most) for value in data[:most]] if isinstance(data, list) else data


def _reading_order(place: Place | None) -> tuple[str, int, int]:
    return (place.file, place.line or 0, place.column or 0) if place else ("", 0, 0)


def _path_of(document: Document, details: Mapping[str, Any]) -> Path:
    path = written_path(document.data, details["loc"])
    return (*path, *details.get("ctx", {}).get("path", ()))


def _problem(
    root: type[Header], document: Document, elsewhere: "_Elsewhere", path: Path, details: Mapping[str, Any]
) -> Problem:
    context: Mapping[str, Any] = details.get("ctx", {})
    outer = path[: len(path) - len(context.get("path", ()))]
    message, hint = _words(root, document, elsewhere, details, outer)
    return Problem(message, path=dotted(path), place=place_of(document, path), hint=hint)


class _Elsewhere:
    """Index of a document's nested fields by name, built once for all problems."""

    def __init__(self, data: Any) -> None:
        self._data = data

    @cached_property
    def _by_name(self) -> dict[Any, list[Path]]:
        places: dict[Any, list[Path]] = defaultdict(list)
        for path in _paths(self._data):
            if len(path) > 1:
                places[path[-1]].append(path)
        return places

    def hint(self, name: str) -> str:
        """The hint for a field that is one of some part: where the document has it."""
        places = [dotted(path) for path in self._by_name.get(name, ())[:3]]
        return f"it is {' or '.join(places)}" if places else ""


def _paths(data: Any, path: Path = ()) -> Iterator[Path]:
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from _paths(value, (*path, key))


def _words(
    root: type[Header], document: Document, elsewhere: _Elsewhere, details: Mapping[str, Any], path: Path
) -> tuple[str, str]:
    """Message (expected and given value) and hint for one validation error."""
    context: Mapping[str, Any] = details.get("ctx", {})
    kind, value = str(details["type"]), details.get("input")
    if kind == "extra_forbidden":
        schema = schema_at(root, document.data, path[:-1])
        deeper = elsewhere.hint(str(path[-1])) if len(path) == 1 else ""
        return "unknown field", deeper or nearest(str(path[-1]), schema.model_fields if schema else ())
    if kind == "missing":
        return "missing field", f"add `{path[-1]}`"
    if kind == "union_tag_not_found":
        return "expected a mapping with a `kind`", "" if isinstance(value, dict) else f"found {shown(value)}"
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        return f"unknown kind {shown(context['tag'])}", nearest(str(context["tag"]), tags)
    if kind == "literal_error":
        options = str(context["expected"])
        words = [word.strip(" '") for word in options.replace(" or ", ", ").split(",")]
        return f"expected {options}, found {shown(value)}", nearest(str(value), words)
    if (expected := _expected(kind, context)) is not None:
        why = _WIDEST_HINT if context.get("le") == WIDEST else ""
        return f"expected {expected}, found {shown(value)}", why
    return str(details["msg"]).removeprefix("Value error, "), str(context.get("hint", ""))


def _expected(kind: str, context: Mapping[str, Any]) -> str | None:
    """Description of the valid values for an error of type, size, length or pattern."""
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _BOUNDS:
        at, limit = _BOUNDS[kind]
        bound = context[limit]
        return f"{at} {format(bound, ',' if isinstance(bound, int) else 'g')}"
    if kind in _LENGTHS:
        at, limit, one, several = _LENGTHS[kind]
        length = context[limit]
        return f"{at} {length:,} {one if length == 1 else several}"
    return f"text of the form {context['pattern']}" if kind == "string_pattern_mismatch" else None


def shown(value: Any) -> str:
    """A value as an author would recognise it, shortened."""
    if isinstance(value, dict | list | tuple):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def written_path(data: Any, location: Sequence[str | int]) -> Path:
    """pydantic's location without the tags of unions, which are not in the document."""
    path: list[str | int] = []
    for index, step in enumerate(location):
        child = _child(data, step)
        if child is not None:
            data = child[0]
            path.append(step)
        elif index == len(location) - 1 and not _is_tag(data, step):
            path.append(step)
    return tuple(path)


def _child(data: Any, step: str | int) -> tuple[Any] | None:
    if isinstance(data, dict) and step in data:
        return (data[step],)
    if isinstance(data, list) and isinstance(step, int) and step < len(data):
        return (data[step],)
    return None


def _is_tag(data: Any, step: str | int) -> bool:
    """True if the last step of a location names a member of a union rather than a field."""
    return not isinstance(data, dict) or data.get("kind") == step or step in UNION_TAGS


def place_of(document: Document, path: Path) -> Place | None:
    """Source location of the path or its nearest ancestor; if `--set` changed a part of it, that option's place."""
    while path and path not in document.places:
        path = path[:-1]
    place = document.places.get(path)
    if place is None or place.line is None or not path:
        return place
    return next((each for at, each in document.overridden.items() if at[: len(path)] == path), place)


def _unknown_parts(document: Document) -> Iterator[Problem]:
    """Part names in layers that no part has, found although other fields are wrong."""
    for top in (("text",), ("vision", "tower")):
        stack: Any = document.data
        for step in top:
            stack = stack.get(step) if isinstance(stack, dict) else None
        parts = stack.get("parts") if isinstance(stack, dict) else None
        if isinstance(parts, dict):
            slots = {part: _slot(spec) for part, spec in parts.items()}
            for path, slot, name in _part_uses(stack.get("layers"), (*top, "layers")):
                if name not in parts:
                    known = [part for part, result in slots.items() if result in (slot, None)]
                    message = f"no part is called {shown(name)}"
                    where = place_of(document, path)
                    yield Problem(message, path=dotted(path), place=where, hint=nearest(name, known))


def _slot(spec: Any) -> str | None:
    kind = spec.get("kind") if isinstance(spec, dict) else None
    return KINDS[kind].slot if isinstance(kind, str) and kind in KINDS else None


def _part_uses(layers: Any, path: Path) -> Iterator[tuple[Path, str, str]]:
    for index, item in enumerate(layers if isinstance(layers, list) else ()):
        if isinstance(item, dict):
            yield from _part_uses(item.get("blocks"), (*path, index, "blocks"))
            for field, slot in SLOTS_OF_BLOCKS.items():
                if isinstance(item.get(field), str):
                    yield (*path, index, field), slot, item[field]


def _unknown_estimates(document: Document, spec: Header) -> Iterator[Problem]:
    """Paths under `estimated` that lead nowhere, of those that the document's own file lists."""
    parents = {label(path) for path in document.extends}
    known = {dotted(path) for path in document.places}
    for index, written in enumerate(spec.estimated):
        place = place_of(document, ("estimated", index))
        inherited = place is not None and place.file in parents
        if written not in known and not inherited:
            path = dotted(("estimated", index))
            yield Problem(
                f"there is no field at {shown(written)}", path=path, place=place, hint=nearest(written, known)
            )
