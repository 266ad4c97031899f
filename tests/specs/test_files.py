"""Laws of every shipped spec file."""

import re
from pathlib import Path
from typing import Any

import pytest

import l4spec
from l4spec.layers.gqa.spec import GQASpec
from l4spec.library import shipped_specs, specs_folder
from l4spec.spec.document import read_document

FILES = sorted(shipped_specs().values())
NAMES = [path.relative_to(specs_folder()).as_posix() for path in FILES]
WANTED = {
    *("scout", "maverick", "behemoth", "llama-guard-4-12b", "mobilellm-r1-950m"),
    *("tiny/scout", "tiny/maverick", "tiny/deepseek", "articles/scout", "articles/maverick"),
    *("compare/llama-3.1-8b", "compare/llama-3.1-70b", "compare/llama-3.1-405b", "compare/mixtral-8x7b"),
    *("compare/deepseek-v3", "compare/gemma-2-27b", "compare/qwen3-235b-a22b"),
}
COMMAND = re.compile(r"#   l4spec (?:plan|verify|build) (\S+)")


def leaves(value: Any, path: str = "") -> set[str]:
    """Dotted paths of all fields; a list counts as one."""
    if not isinstance(value, dict):
        return {path}
    return {leaf for key, inner in value.items() for leaf in leaves(inner, f"{path}.{key}".removeprefix("."))}


def test_all_promised_specs_are_shipped() -> None:
    assert {name.removesuffix(".yaml") for name in NAMES} >= WANTED
    assert len(FILES) >= 35


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_spec_opens_with_its_purpose_its_command_and_its_schema(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert re.match(r"# \w.*\.$", lines[0]), "what it is for"
    command = next(filter(None, map(COMMAND.match, lines)), None)
    assert command, "the command that uses it"
    shipped = path.relative_to(specs_folder()).as_posix().removesuffix(".yaml")
    assert command[1] in (shipped, shipped.removeprefix("compare/"))
    up = "../" * len(path.relative_to(specs_folder()).parts)
    assert f"# yaml-language-server: $schema={up}docs/spec.schema.json" in lines[:12]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_spec_compiles_and_names_its_sources(path: Path) -> None:
    spec = l4spec.load(path)
    assert l4spec.compile(spec).num_layers == spec.text.num_layers
    assert spec.description
    assert spec.sources


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_part_of_a_spec_is_used(path: Path) -> None:
    text = l4spec.load(path).text
    used = {name for _, block in text.written_blocks() for name in block.part_names()}
    assert set(text.parts) == used


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("tiny/", "examples/"))])
def test_a_real_model_has_claims_about_its_size(name: str) -> None:
    quantities = {claim.quantity for claim in l4spec.load(specs_folder() / name).claims}
    assert "total_params" in quantities


def test_every_number_of_behemoth_but_its_experts_is_marked_as_estimated() -> None:
    data = read_document("behemoth").data
    estimated = l4spec.load("behemoth").estimated
    fields = {path for section in ("text", "vision") for path in leaves(data[section], section)}
    certain = {path for path in fields if not any(path == e or path.startswith(f"{e}.") for e in estimated)}
    assert certain == {"text.parts.moe.kind", "text.parts.moe.num_experts"}


@pytest.mark.parametrize("model", ["scout", "maverick"])
def test_a_miniature_keeps_the_structure_of_its_model(model: str) -> None:
    big, tiny = l4spec.load(model).text, l4spec.load(f"tiny/{model}").text
    pattern = [[(b.attention, b.ffn, b.form, b.repeat) for _, b in text.written_blocks()] for text in (big, tiny)]
    assert pattern[0] == pattern[1]
    for name, part in big.parts.items():
        small = tiny.parts[name]
        assert part.model_fields_set == small.model_fields_set
        if isinstance(part, GQASpec) and isinstance(small, GQASpec):
            assert part.num_heads * small.num_kv_heads == small.num_heads * part.num_kv_heads
            assert part.mask.kind == small.mask.kind
        if part.kind == "moe":
            chosen = ("num_experts", "num_experts_per_token", "num_shared_experts", "router")
            assert part.model_dump(include=set(chosen)) == small.model_dump(include=set(chosen))


@pytest.mark.parametrize("name", ["tiny/scout", "tiny/maverick", "tiny/deepseek"])
def test_a_miniature_has_less_than_a_million_parameters(name: str) -> None:
    graph = l4spec.compile(l4spec.load(name))
    assert 100_000 < sum(parameter.numel for _, parameter in graph.parameters()) < 1_000_000
