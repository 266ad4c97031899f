"""Laws of every shipped document that is no spec of a model."""

import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from l4spec.library import FOLDERS, find_shipped, shipped_documents, shipped_of, shipped_specs
from l4spec.spec.document import load_document, read_document
from l4spec.spec.document_kinds import DOCUMENT_KINDS, kind_of, parse_any
from l4spec.spec.json_schema import document_schema, schema_text

ROOT = Path(__file__).parents[2]
OTHERS = {name: kind for kind in FOLDERS if kind in DOCUMENT_KINDS for name in shipped_of(kind)}


def test_every_shipped_document_is_a_spec_or_lies_in_the_folder_of_its_kind() -> None:
    assert set(shipped_documents()) == {*shipped_specs(), *(name for kind in FOLDERS for name in shipped_of(kind))}
    assert "scenarios/chat" in OTHERS


@pytest.mark.parametrize("name", OTHERS)
def test_a_shipped_document_is_what_its_folder_says_and_parses(name: str) -> None:
    document = load_document(name)
    assert kind_of(document).name == OTHERS[name]
    parsed = parse_any(document)
    assert parsed.description
    assert parsed.sources


@pytest.mark.parametrize("name", OTHERS)
def test_a_shipped_document_opens_with_its_purpose_its_command_and_its_schema(name: str) -> None:
    lines = shipped_documents()[name].read_text(encoding="utf-8").splitlines()
    assert re.match(r"# \w.*\.$", lines[0]), "what it is for"
    assert any(re.match(rf"#   l4spec \w+ {name}", line) for line in lines), "the command that uses it"
    up = "../" * len(name.split("/"))
    schema = f"# yaml-language-server: $schema={up}docs/{OTHERS[name]}.schema.json"
    assert schema in lines[:12]


@pytest.mark.parametrize("name", OTHERS)
def test_a_shipped_document_passes_the_schema_of_its_kind(name: str) -> None:
    validator = Draft202012Validator(document_schema(DOCUMENT_KINDS[OTHERS[name]].root))
    assert not [error.message for error in validator.iter_errors(read_document(name).data)]


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_the_published_schema_of_a_kind_is_in_step(kind: str) -> None:
    written = (ROOT / "docs" / f"{kind}.schema.json").read_text(encoding="utf-8")
    command = f"l4spec schema {kind} --out docs/{kind}.schema.json --force"
    assert written == schema_text(DOCUMENT_KINDS[kind].root), f"run: {command}"


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_every_field_of_a_kind_is_described(kind: str) -> None:
    definitions = document_schema(DOCUMENT_KINDS[kind].root)["$defs"]
    silent = [
        f"{name}.{field}"
        for name, definition in definitions.items()
        for field, entry in definition.get("properties", {}).items()
        if field != "kind" and not entry.get("description")
    ]
    assert not silent


def test_a_bare_name_is_always_a_spec() -> None:
    for name in OTHERS:
        assert find_shipped(name) is not None
        assert find_shipped(name.split("/")[1]) in (None, *shipped_specs().values())
