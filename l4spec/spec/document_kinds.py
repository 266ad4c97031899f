"""The kinds of documents that the language has, each with its schema, its folder under `specs/` and its word.

    root_of(load_document("scenarios/chat"))      Scenario
    load("scenarios/chat", Scenario)              the parsed document

A kind is one line here and one class on top of `Header`; reading, `extends`, `--set`, places, spellings, estimated
marks and the JSON Schema follow from the class.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

from l4spec.errors import Problem, SpecError, nearest
from l4spec.library import FOLDERS
from l4spec.spec.document import Document, load_document
from l4spec.spec.header import Header
from l4spec.spec.parse import parse, parse_spec, place_of
from l4spec.spec.tree import shortened

Root = TypeVar("Root", bound=Header)
MODEL = "spec"
"""Kind of a document without `kind`."""


class DocumentKind(NamedTuple):
    """One kind of document: its name after `kind:`, and `module:Class` of its schema, imported on use."""

    name: str
    schema: str

    @property
    def root(self) -> type[Header]:
        """The schema."""
        module, name = self.schema.split(":")
        root: type[Header] = getattr(import_module(module), name)
        return root


DOCUMENT_KINDS: Mapping[str, DocumentKind] = {
    kind.name: kind
    for kind in (
        DocumentKind(MODEL, "l4spec.spec.model:ModelSpec"),
        DocumentKind("scenario", "l4spec.spec.scenario:Scenario"),
        DocumentKind("recipe", "l4spec.spec.recipe:Recipe"),
    )
}


def kind_of(document: Document) -> DocumentKind:
    """The kind that a document declares. Raises SpecError for an unknown one, with the nearest spelling."""
    word = document.data.get("kind", MODEL)
    if isinstance(word, str) and word in DOCUMENT_KINDS:
        return DOCUMENT_KINDS[word]
    hint = nearest(word, DOCUMENT_KINDS) if isinstance(word, str) else f"one of: {', '.join(DOCUMENT_KINDS)}"
    message = f"unknown kind of document {shortened(word)}"
    raise SpecError([Problem(message, "kind", place_of(document, ("kind",)), hint)])


def kind_word(root: type[Header]) -> str:
    """The word after `kind:` that a root schema declares."""
    field = root.model_fields.get("kind")
    return MODEL if field is None else str(get_args(field.annotation)[0])


def parse_any(document: Document) -> Header:
    """Parse a document by its `kind`. Raises SpecError with all problems at once."""
    root = kind_of(document).root
    return parse_spec(document) if kind_word(root) == MODEL else parse(document, root)


def parse_as(document: Document, root: type[Root]) -> Root:
    """The document as a `root`. Raises SpecError for another kind of document, and with all its problems at once."""
    output, expected = kind_of(document).name, kind_word(root)
    if output != expected:
        hint = f"add `kind: {expected}`" if "kind" not in document.data else _shipped(expected)
        message = f"expected a {expected}, found a {output}"
        raise SpecError([Problem(message, "kind", place_of(document, ("kind",)), hint)])
    result = parse_spec(document) if expected == MODEL else parse(document, root)
    assert isinstance(result, root)
    return result


def load(path_or_name: str | Path, root: type[Root], overrides: Sequence[str] = ()) -> Root:
    """Load a document by path or shipped name, with `extends` and `overrides` merged in. Raises SpecError."""
    return parse_as(load_document(path_or_name, overrides), root)


def _shipped(kind: str) -> str:
    folder = FOLDERS.get(kind)
    return f"shipped ones are called {folder}/…" if folder else "a bare name is a spec: `l4spec ls`"


__all__ = ["DOCUMENT_KINDS", "MODEL", "DocumentKind", "kind_of", "kind_word", "load", "parse_any", "parse_as"]
