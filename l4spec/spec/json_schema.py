"""The JSON Schema of a kind of document, for editors, with descriptions from the docstrings of its fields.

A file that `extends` another one may leave out any field, and set null to drop one; for it there is a second, partial
copy of every definition.
"""

import ast
import inspect
import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import Any, get_args

from l4spec.layers import KINDS
from l4spec.layers.base import LayerSpec, Spec
from l4spec.spec.document_kinds import kind_word
from l4spec.spec.header import Header
from l4spec.spec.model import ModelSpec

Json = dict[str, Any]
_REF = "#/$defs/"
_PARTIAL = "Partial"
_EXAMPLES: dict[tuple[str, str], list[Any]] = {
    ("Header", "name"): ["llama-4-scout-17b-16e"],
    ("Header", "extends"): ["scout", "./parent.yaml"],
    ("Header", "estimated"): [["text.hidden_size", "text.parts.moe.intermediate_size"]],
    ("TextSpec", "vocab_size"): [202048],
    ("TextSpec", "max_seq_len"): [8192, 1048576],
    ("StackSpec", "hidden_size"): [5120],
    ("StackSpec", "parts"): [{"ffn": {"kind": "swiglu", "intermediate_size": 8192}}],
    ("StackSpec", "layers"): [[{"attention": "attention", "ffn": "ffn", "repeat": 48}]],
    ("Claim", "value"): [109e9, True],
    ("Claim", "on"): ["1xH100-80GB", "2x8xH100"],
    ("Claim", "quantization"): ["int4-mixed", "fp8"],
    ("Claim", "engine"): ["vllm-hybrid"],
}


def schema_text(root: type[Header] = ModelSpec) -> str:
    """The schema of a kind of document as a file in `docs/` has it (`docs/spec.schema.json` for specs)."""
    return json.dumps(document_schema(root), indent=2, ensure_ascii=False) + "\n"


def spec_schema() -> Json:
    """The schema of a spec file (JSON Schema 2020-12)."""
    return document_schema(ModelSpec)


def document_schema(root: type[Header]) -> Json:
    """The schema of files of the kind that `root` describes (JSON Schema 2020-12)."""
    name = root.__name__
    top = root.model_json_schema(ref_template=f"{_REF}{{model}}")
    definitions: Json = top.pop("$defs")
    definitions[name] = top
    top["required"].remove("name")  # a file without a name is called as the file
    for definition in definitions.values():
        _document(definition, root)
        _close(definition)
    partial = {f"{key}{_PARTIAL}": _partial(definition) for key, definition in definitions.items()}
    word = kind_word(root)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"l4spec {'model' if root is ModelSpec else word}",
        "description": top["description"],
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": f"{_REF}{name}{_PARTIAL}"},
        "else": {"$ref": f"{_REF}{name}"},
        "$defs": dict(sorted({**definitions, **partial}.items())),
    }


def _document(definition: Json, root: type[Header]) -> None:
    """Add to every property the docstring of its field, and examples."""
    schema = _classes(root).get(definition.get("title", ""))
    if schema is None:
        return
    for owner in reversed(schema.__mro__):
        docs = field_docs(owner) if issubclass(owner, Spec) else {}
        for name, entry in definition.get("properties", {}).items():
            entry.pop("title", None)
            if name in docs:
                entry["description"] = docs[name]
            if (owner.__name__, name) in _EXAMPLES:
                entry["examples"] = _EXAMPLES[owner.__name__, name]


@cache
def _classes(root: type[Header]) -> dict[str, type[Spec]]:
    """Every schema that a document is made of, by name."""
    classes: dict[str, type[Spec]] = {}
    waiting: list[type[Spec]] = [root]
    while waiting:
        schema = waiting.pop()
        if schema.__name__ not in classes:
            classes[schema.__name__] = schema
            waiting += [inner for field in schema.model_fields.values() for inner in _schemas_in(field.annotation)]
    return classes


def _schemas_in(annotation: Any) -> Iterator[type[Spec]]:
    if annotation is LayerSpec:  # whichever layer the author names
        yield from (kind.spec for kind in KINDS.values())
    elif isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for part in get_args(annotation):
        yield from _schemas_in(part)


@cache
def field_docs(schema: type) -> dict[str, str]:
    """Docstrings of the fields of one class, by field; parents' fields are not repeated."""
    tree = ast.parse(dedent(inspect.getsource(schema)))
    body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
    docs = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                docs[field.target.id] = " ".join(inspect.cleandoc(text).split())
    return docs


def _close(schema: Any) -> None:
    """Tighten pydantic's schema: keys that fit no pattern are refused, and a list's length is its items'."""
    if isinstance(schema, dict):
        if "patternProperties" in schema:
            schema["additionalProperties"] = False
        if schema.get("type") == "array" and "minLength" in schema:
            schema["minItems"] = schema.pop("minLength")
        for child in schema.values():
            _close(child)
    elif isinstance(schema, list):
        for child in schema:
            _close(child)


def _partial(definition: Json) -> Json:
    """The definition for a file that extends another: nothing is required, and null drops a field."""
    copy = deepcopy(definition)
    copy.pop("required", None)
    if "title" in copy:
        copy["title"] += " (changes)"
    for name, entry in copy.get("properties", {}).items():
        copy["properties"][name] = _optional(_loosened(entry))
    return copy


def _optional(entry: Json) -> Json:
    annotations: Json = {key: entry.pop(key) for key in ("description", "examples") if key in entry}
    entry.pop("default", None)  # what is left out keeps the parent's value
    return {**annotations, "anyOf": [entry, {"type": "null"}]}


def _loosened(entry: Any) -> Any:
    """`entry` with partial definitions inside mappings; a list replaces the parent's, so its items stay whole."""
    if not isinstance(entry, dict) or entry.get("type") == "array":
        return entry
    changed: Json = {}
    for key, value in entry.items():
        if key == "$ref":
            changed[key] = f"{value}{_PARTIAL}"
        elif key in ("oneOf", "anyOf"):
            changed["anyOf"] = [_loosened(member) for member in value]
        elif key == "patternProperties":
            changed[key] = {pattern: _optional(_loosened(child)) for pattern, child in value.items()}
        elif key == "additionalProperties" and isinstance(value, dict):
            changed[key] = _optional(_loosened(value))
        elif key not in ("discriminator", "minProperties"):
            changed[key] = value
    return changed


__all__ = ["document_schema", "field_docs", "schema_text", "spec_schema"]
