"""A layer is known by what it declares: nobody who plans, reports, verifies or deploys asks which kind it is."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from l4spec.layers import KINDS
from tests.contracts.kinds_everywhere import KINDS_OF_L4SPEC, install_renamed_kinds

ROOT = Path(__file__).parents[2]
ROOMS = ("planners", "l4spec/report", "l4spec/verification", "l4spec/deploy", "l4spec/sharding", "l4spec/quantization")
LAWS = ("plans", "memory", "times", "shards", "runs")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What differs between every kind and its copy of another name, law by law."""
    folder = tmp_path_factory.mktemp("renamed")
    install_renamed_kinds(folder)
    paths = os.pathsep.join((str(folder), str(ROOT)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "L4SPEC_OWN_KINDS_ONLY": ""}
    command = [sys.executable, "-m", "tests.contracts.renamed"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("law", LAWS)
def test_a_kind_registered_under_another_name_plans_times_shards_and_measures_the_same(
    compared: dict[str, Any], law: str
) -> None:
    assert compared[law] == []


def test_the_law_of_names_is_tried_on_every_kind(compared: dict[str, Any]) -> None:
    assert set(compared["kinds"]) == set(KINDS_OF_L4SPEC)


def asked(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every comparison with a kind's name, and of every `isinstance` of a schema of a kind."""
    schemas = {kind.spec.__name__ for kind in KINDS.values()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            about = any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides)
            named = any(isinstance(side, ast.Constant) and side.value in KINDS for side in sides)
            if about and named:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Name) and node.id in schemas:
            yield node.lineno, node.id


def test_nobody_who_plans_reports_verifies_or_deploys_asks_for_a_kind() -> None:
    files = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    assert len(files) > 100
    places = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in files
        for line, text in asked(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert places == []


@pytest.mark.parametrize("line", ['node.kind == "moe"', 'group.first.kind != "gqa"', "isinstance(node.spec, MoESpec)"])
def test_the_search_for_such_questions_sees_them(line: str) -> None:
    assert list(asked(ast.parse(line)))
