"""From a `Document` to a `ModelSpec`: every schema error with its place, path, expectation and nearest spelling."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from l4spec.errors import Place, Problem, SpecError
from l4spec.spec.document import Document
from l4spec.spec.model import ModelSpec

Path = tuple[str | int, ...]


def parse_spec(document: Document) -> ModelSpec:
    """The document as a `ModelSpec`. Raises SpecError with all problems at once."""
    try:
        return ModelSpec.model_validate(document.data)
    except ValidationError as error:
        raise SpecError([_problem(document, details) for details in error.errors(include_url=False)]) from None


def _problem(document: Document, details: Mapping[str, Any]) -> Problem:
    path = written_path(document.data, details["loc"])
    message = str(details["msg"]).removeprefix("Value error, ")
    return Problem(message, path=format_path(path), place=place_of(document, path))


def written_path(data: Any, location: Sequence[str | int]) -> Path:
    """pydantic's location without the tags of discriminated unions, which nobody wrote."""
    path: list[str | int] = []
    for step in location:
        inside = isinstance(data, dict) and step in data
        indexed = isinstance(data, list) and isinstance(step, int) and step < len(data)
        if inside or indexed:
            data = data[step]
            path.append(step)
        elif step == location[-1] and not (isinstance(data, dict) and data.get("kind") == step):
            path.append(step)
    return tuple(path)


def place_of(document: Document, path: Path) -> Place | None:
    """Where the path, or else its nearest ancestor, was written."""
    while path and path not in document.places:
        path = path[:-1]
    return document.places.get(path)


def format_path(path: Path) -> str:
    """`("text", "layers", 0, "repeat")` as `text.layers[0].repeat`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
