"""Schema errors name their place, path, expectation and nearest spelling, all at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import l4spec
from l4spec.errors import Problem, SpecError
from l4spec.spec.document import read_text
from l4spec.spec.model import ModelSpec
from l4spec.spec.parse import parse_spec
from l4spec.spec.schema_walk import schema_at

SMALL = """\
l4spec: 1
name: small
text:
  hidden_size: 64
  vocab_size: 100
  max_seq_len: 128
  norm: {kind: rmsnorm, eps: 1.0e-5}
  parts:
    local: {kind: gqa, num_heads: 4, num_kv_heads: 2, head_dim: 16, mask: {kind: causal}, position: {kind: none}}
    moe: {kind: moe, num_experts: 4, num_experts_per_token: 1, intermediate_size: 32, router: {score: sigmoid}}
  layers:
    - {attention: local, ffn: moe, repeat: 2}
    - repeat: 2
      blocks: [{attention: local, ffn: moe}]
"""


def problems_of(text: str) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        parse_spec(read_text(text, "small.yaml"))
    return list(caught.value.problems)


def test_a_valid_spec_parses() -> None:
    spec = parse_spec(read_text(SMALL, "small.yaml"))
    assert (spec.name, spec.text.num_layers) == ("small", 4)


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "message", "hint"),
    [
        ("hidden_size: 64", 'hidden_size: "64"', 4, "text.hidden_size", "expected an integer", ""),
        ("hidden_size: 64", "hiden_size: 64", 4, "text.hiden_size", "unknown field", "hidden_size"),
        ("hidden_size: 64", "hidden_size: 1.5", 4, "text.hidden_size", "expected an integer", ""),
        ("hidden_size: 64", "hidden_size: true", 4, "text.hidden_size", "expected an integer", ""),
        ("hidden_size: 64", "hidden_size: 0", 4, "text.hidden_size", "expected at least 1, found 0", ""),
        ("_size: 64", "_size: 999999999", 4, "text.hidden_size", "at most 16,777,216, found 999999999", "1,048,576"),
        (
            "num_experts: 4",
            "num_experts: 1000000000000",
            10,
            "text.parts.moe.num_experts",
            "expected at most 16,777,216, found 1000000000000",
            "1,048,576 experts of arXiv:2407.04153",
        ),
        ("kind: rmsnorm", "kind: rmsnrm", 7, "text.norm", "unknown kind", "rmsnorm"),
        ("num_experts: 4", "num_expert: 4", 10, "text.parts.moe.num_expert", "unknown field", "num_experts"),
        ("score: sigmoid", "score: sigmod", 10, "text.parts.moe.router.score", "found 'sigmod'", "sigmoid"),
        ("_per_token: 1", "_per_token: 5", 10, "text.parts.moe", "must not exceed num_experts", ""),
        ("num_kv_heads: 2", "num_kv_heads: 3", 9, "text.parts.local", "multiple of num_kv_heads", ""),
        ("- {attention: local", "- {attention: lokal", 12, "text.layers[0].attention", "no part is called", "local"),
        ("- {attention: local", "- {attention: moe", 12, "text.layers[0].attention", "no attention layer", "local"),
        (
            "[{attention: local, ffn",
            "[{attention: local, fnn",
            14,
            "text.layers[1].blocks[0].fnn",
            "unknown field",
            "ffn",
        ),
        ("kind: causal", "kind: chunked", 9, "text.parts.local.mask.size", "missing field", "size"),
        ("l4spec: 1", "l4spec: 2", 1, "l4spec", "expected 1", ""),
        ("  vocab_size: 100\n", "", 3, "text.vocab_size", "missing field", "vocab_size"),
    ],
)
def test_an_error_names_place_path_expectation_and_mend(
    old: str, new: str, line: int, path: str, message: str, hint: str
) -> None:
    assert old in SMALL
    problems = problems_of(SMALL.replace(old, new, 1))
    matching = [problem for problem in problems if problem.path == path and message in problem.message]
    assert len(matching) == 1, problems
    assert matching[0].place is not None
    assert (matching[0].place.file, matching[0].place.line) == ("small.yaml", line)
    assert hint in matching[0].hint


def test_all_problems_come_at_once() -> None:
    text = SMALL.replace("hidden_size: 64", 'hidden_size: "64"').replace("kind: rmsnorm", "kind: rms")
    text = text.replace("attention: local, ffn: moe, repeat: 2", "attention: gone, ffn: moe, repeat: x")
    paths = {problem.path for problem in problems_of(text)}
    assert {"text.hidden_size", "text.norm", "text.layers[0].attention", "text.layers[0].repeat"} <= paths


def test_an_estimate_of_no_field_is_refused_with_the_nearest_one() -> None:
    (problem,) = problems_of(SMALL + "estimated: [text.hiden_size]\n")
    assert problem.path == "estimated[0]"
    assert "text.hidden_size" in problem.hint


def test_very_many_problems_are_the_first_ones_of_the_document() -> None:
    """Those after thousands of right entries, too."""
    problems = problems_of(SMALL + f"sources: [{'x, ' * 3_000}{'[], ' * 12_000}]\n")
    assert [problem.path for problem in problems[:2]] == ["sources[3000]", "sources[3001]"]
    assert {problem.message for problem in problems[:-1]} == {"expected text, found a list of 0"}
    assert problems[-1].message == "stopped after 50 problems"


def test_too_many_layers_are_refused() -> None:
    (problem,) = problems_of(SMALL.replace("repeat: 2}", "repeat: 20000}"))
    assert problem.path == "text.layers"


@pytest.mark.parametrize("tower", ["{learned_positions: true}", "{learned_positions: false, class_token: last}"])
def test_more_patches_than_any_size_are_refused_at_the_image(tmp_path: Path, tower: str) -> None:
    file = tmp_path / "huge.yaml"
    vision = f"vision: {{image_size: 2147483648, patch_size: 1, tower: {tower}}}\n"
    file.write_text(f"l4spec: 1\nextends: tiny/scout\nname: huge\n{vision}", encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        l4spec.load(file)
    (problem,) = caught.value.problems
    assert (problem.path, problem.place and problem.place.line) == ("vision.image_size", 4)
    assert "patches" in problem.message


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ((), "text"),
        (("text",), "hidden_size"),
        (("text", "parts", "moe"), "num_experts"),
        (("text", "parts", "moe", "router"), "score"),
        (("text", "layers", 1), "blocks"),
        (("text", "layers", 1, "blocks", 0), "attention"),
    ],
)
def test_the_schema_at_a_path_is_found(path: tuple[str | int, ...], field: str) -> None:
    data: Any = yaml.safe_load(SMALL)
    schema = schema_at(ModelSpec, data, path)
    assert schema is not None
    assert field in schema.model_fields


def test_no_schema_stands_inside_a_number() -> None:
    assert schema_at(ModelSpec, yaml.safe_load(SMALL), ("text", "hidden_size", "deeper")) is None
