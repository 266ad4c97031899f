"""Every law over thousands of models: `python -m pytest -m slow -n 2 --dist worksteal tests/properties`, an hour."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(path for path in HERE.glob("test_*.py") if path.name != Path(__file__).name)


def laws_of(path: Path) -> list[str]:
    """The tests of one file, each by a name that pytest takes: one law a process, so that workers share the laws."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return [f"{path.name}::{name}" for name in names]


@pytest.mark.slow
@pytest.mark.parametrize(
    "law", [law for path in FILES for law in laws_of(path)], ids=lambda law: law.partition("::")[2]
)
def test_the_law_holds_over_thousands_of_models(law: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile=exhaustive", "-m", "not slow"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"{HERE}/{law}"],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
