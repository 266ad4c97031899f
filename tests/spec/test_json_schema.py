"""The JSON Schema accepts what the parser accepts, says what the fields mean, and is the one in docs/."""

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from l4spec.errors import SpecError
from l4spec.library import shipped_specs
from l4spec.spec.document import read_document, read_text
from l4spec.spec.json_schema import field_docs, schema_text, spec_schema
from l4spec.spec.model import ModelSpec, TextSpec
from l4spec.spec.parse import parse_spec

ROOT = Path(__file__).parents[2]
VALIDATOR = Draft202012Validator(spec_schema())
SMALL = """\
l4spec: 1
text:
  hidden_size: 64
  vocab_size: 100
  max_seq_len: 128
  norm: {kind: rmsnorm, eps: 1.0e-5}
  parts: {ffn: {kind: swiglu, intermediate_size: 64}}
  layers: [{ffn: ffn}]
"""


def accepted(text: str) -> bool:
    return bool(VALIDATOR.is_valid(read_text(text, "a test").data))


def test_the_published_schema_is_in_step() -> None:
    written = (ROOT / "docs" / "spec.schema.json").read_text(encoding="utf-8")
    assert written == schema_text(), "run: l4spec schema --out docs/spec.schema.json --force"


def test_it_is_a_json_schema() -> None:
    Draft202012Validator.check_schema(spec_schema())


@pytest.mark.parametrize("name", list(shipped_specs()))
def test_every_shipped_spec_passes(name: str) -> None:
    messages = [error.message for error in VALIDATOR.iter_errors(read_document(name).data)]
    assert not messages


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hidden_size: 64", "hiden_size: 64"),
        ("hidden_size: 64", "hidden_size: 0"),
        ("hidden_size: 64", "hidden_size: '64'"),
        ("  vocab_size: 100\n", ""),
        ("kind: rmsnorm", "kind: batchnorm"),
        ("kind: swiglu, ", ""),
        ("layers: [{ffn: ffn}]", "layers: []"),
        ("layers: [{ffn: ffn}]", "layers: [{fnn: ffn}]"),
        ("parts: {ffn:", "parts: {'1 ffn':"),
        ("l4spec: 1", "l4spec: 2"),
        ("l4spec: 1", "l4spec: 1\nclaims: [{quantity: total_params, value: 1}]"),
    ],
)
def test_schema_and_parser_refuse_the_same_mistakes(old: str, new: str) -> None:
    assert accepted(SMALL)
    assert old in SMALL
    wrong = SMALL.replace(old, new)
    assert not accepted(wrong)
    with pytest.raises(SpecError):
        parse_spec(read_text(wrong.replace("l4spec:", "name: x\nl4spec:", 1), "a test"))


@pytest.mark.parametrize(
    "changes",
    [
        "text: {parts: {moe: {num_experts: 32}}}",
        "vision: null",
        "text: {hidden_size: 64}",
        "text: {layers: [{ffn: moe}]}",
    ],
)
def test_a_variant_may_leave_out_and_drop_what_it_likes(changes: str) -> None:
    assert accepted(f"l4spec: 1\nextends: scout\n{changes}\n")
    assert not accepted(f"l4spec: 1\n{changes}\n")


@pytest.mark.parametrize(
    "changes", ["text: {hiden_size: 64}", "text: {layers: [{fnn: moe}]}", "text: {hidden_size: x}"]
)
def test_a_variant_is_checked_for_what_it_says(changes: str) -> None:
    assert not accepted(f"l4spec: 1\nextends: scout\n{changes}\n")


def test_every_field_is_described() -> None:
    definitions: dict[str, Any] = spec_schema()["$defs"]
    silent = [
        f"{name}.{field}"
        for name, definition in definitions.items()
        for field, entry in definition.get("properties", {}).items()
        if field != "kind" and not entry.get("description")
    ]
    assert len(definitions) > 40
    assert not silent


def test_descriptions_are_the_texts_under_the_fields() -> None:
    properties = spec_schema()["$defs"]["TextSpec"]["properties"]
    assert properties["vocab_size"]["description"] == field_docs(TextSpec)["vocab_size"]
    assert properties["hidden_size"]["description"] == "Width of the residual stream."
    assert field_docs(ModelSpec)["text"] == "The language model."
