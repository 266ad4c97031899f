"""The public face of the package: every name is there, listed, and imported only when it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import l4spec


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
