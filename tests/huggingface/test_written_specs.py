"""What an import writes is what `validate` reads: names, carried values of every kind, and sizes at the limits."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l4spec.errors import MAX_PROBLEMS, Problem, SpecError
from l4spec.huggingface import export_config, import_config
from l4spec.spec.document import read_text
from l4spec.spec.parse import parse_spec
from tests.huggingface.releases import LLAMA_3_1_8B

TRAPS = [
    "5e5",
    "1e5",
    "n",
    "on",
    "0x1F",
    "1:30",
    "2026-01-01",
    "010",
    "1_000",
    "~",
    "null",
    "=",
    "<<",
    ".inf",
    "",
    " a ",
]
HOSTILE = [
    "\u2028",
    "\x00",
    "\x85",
    "\ufeff",
    "\ud800",
    "a\nb",
    "# no comment",
    "'",
    '"',
    "é",
    "{",
    "- x",
    "key: value",
]
texts = st.sampled_from(TRAPS + HOSTILE) | st.text(max_size=12)
numbers = st.integers(-(2**70), 2**70) | st.floats() | st.just(10**400)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def assert_read_back(config: dict[str, Any], name: str | None = None) -> None:
    """What is written can be read, and says what the import says."""
    imported = import_config(config, name=name)
    document = read_text(imported.yaml, "spec.yaml")
    assert document.data == imported.data
    assert parse_spec(document) == imported.spec


@given(values)
@example("5e5")
@example(2**63)
@example(float("inf"))
@settings(max_examples=150)
def test_a_carried_value_of_any_kind_is_read_back_or_left_out_with_a_note(value: Any) -> None:
    config = {**LLAMA_3_1_8B, "bos_token_id": value}
    assert_read_back(config)
    imported = import_config(config)
    kept = "bos_token_id" in imported.data["huggingface"]["fields"]
    assert kept != any("bos_token_id" in note for note in imported.notes)
    if kept:
        assert (
            json.loads(json.dumps(export_config(imported.spec)["bos_token_id"]))
            == imported.data["huggingface"]["fields"]["bos_token_id"]
        )


@given(texts.filter(lambda text: not any(ord(char) in range(0xD800, 0xE000) for char in text)))
@settings(max_examples=100)
def test_a_model_of_any_name_is_read_back(name: str) -> None:
    assert_read_back(LLAMA_3_1_8B, name or None)


def nested(levels: int) -> Any:
    """A list in a list in a list."""
    result: Any = 1
    for _ in range(levels):
        result = [result]
    return result


@pytest.mark.parametrize("levels", [10, 60, 70, 900])
def test_a_carried_value_of_many_levels_is_read_back_or_left_out(levels: int) -> None:
    assert_read_back({**LLAMA_3_1_8B, "bos_token_id": nested(levels)})


@pytest.mark.parametrize("size", [1, 10_000, 200_000])
def test_a_carried_list_of_any_length_is_read_back_or_left_out(size: int) -> None:
    names = [f"model.layers.{i}.mlp.experts.{i}.gate_proj" for i in range(size)]
    assert_read_back({**LLAMA_3_1_8B, "auto_map": names})


def test_of_more_metadata_than_a_spec_can_hold_the_rest_is_left_out_with_a_note() -> None:
    config = {**LLAMA_3_1_8B, **{f"_private_{i}": "x" * 1000 for i in range(2000)}}
    assert_read_back(config)
    assert "more" in import_config(config).notes[0]


def test_thousands_of_unknown_fields_are_answered_at_once_and_briefly() -> None:
    with pytest.raises(SpecError) as caught:
        import_config({**LLAMA_3_1_8B, **{f"twist{i}": i for i in range(60_000)}})
    *problems, last = caught.value.problems
    assert len(problems) == MAX_PROBLEMS
    assert last.message == f"stopped after {MAX_PROBLEMS} problems"


@pytest.mark.parametrize(("num_problems", "listed"), [(50, 50), (51, 51), (52, 51)])
def test_as_many_problems_as_the_limit_are_all_listed_and_one_more_is_a_line(num_problems: int, listed: int) -> None:
    problems = SpecError(Problem(f"problem {i}") for i in range(num_problems)).problems
    assert len(problems) == listed
    assert ("stopped" in problems[-1].message) is (num_problems > 50)
