"""The public face of the package: every name is there, listed, and imported only when it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import l4spec
import planners
from l4spec.errors import UserError


def test_every_public_name_is_listed_and_can_be_had() -> None:
    assert {"Layout", "build", "compile", "distribute", "load", "measure", "UserError"} <= set(dir(l4spec))
    assert all(hasattr(l4spec, name) for name in dir(l4spec))


def test_type_checkers_see_the_names_that_are_imported_when_asked_for() -> None:
    tree = ast.parse(Path(l4spec.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == l4spec._PLACES


def test_importing_the_package_imports_no_torch() -> None:
    code = "import l4spec, sys; dir(l4spec); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_spec_is_loaded_from_a_mapping_and_changed_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wider = {"text": {"parts": {"moe": {"num_experts": 32}}}}
    spec = l4spec.load({"l4spec": 1, "extends": "scout", "name": "mine", **wider})
    assert (spec.name, spec.text.parts) == ("mine", l4spec.load("scout", {"text.parts.moe.num_experts": 32}).text.parts)
    changed = l4spec.load("scout", {"text.parts.moe": {"num_experts": 32}, "description": "no: 'yes'", "vision": None})
    assert (changed.description, changed.vision, changed.text.parts) == ("no: 'yes'", None, spec.text.parts)
    assert planners.plan({"l4spec": 1, "extends": "scout"}).params == planners.plan("scout").params


WRONG: tuple[tuple[Any, Any, str], ...] = (
    ({"l4spec": 1, "extends": "scot", "name": "x"}, (), "the mapping:.*did you mean 'scout'"),
    ({"l4spec": 1, "extends": "scout", "texd": {}}, (), "texd: unknown field"),
    ({"l4spec": object()}, (), "cannot be said in YAML"),
    ({}, (), "l4spec"),
    ("scout", {"text.parts.moe.num_experts": object()}, "--set text.parts.moe.num_experts: cannot be said in YAML"),
    ("scout", {"text.hidden_size": "wide"}, "expected an integer, found 'wide'"),
    (3, (), "expected a spec, found int"),
)


@pytest.mark.parametrize(("model", "overrides", "message"), WRONG)
def test_what_is_no_spec_is_one_error(model: Any, overrides: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        l4spec.load(model, overrides)
