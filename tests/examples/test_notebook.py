"""examples/notebook: every cell runs, in order, in one namespace, and shows what a notebook can show."""

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "plan_llama4.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> tuple[Any, str]:
    """(the value of the last expression, what was printed), as a notebook would show them."""
    tree = ast.parse(source)
    *before, last = tree.body
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if not isinstance(last, ast.Expr):
            exec(compile(tree, "cell", "exec"), names)
            return None, printed.getvalue()
        exec(compile(ast.Module(before, []), "cell", "exec"), names)
        return eval(compile(ast.Expression(last.value), "cell", "eval"), names), printed.getvalue()


def test_the_notebook_runs_from_top_to_bottom_and_shows_plans_as_tables() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, Any] = {"__name__": "__main__"}
    values, text = [], ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "outputs are not kept: they would age"
            value, printed = run_cell("".join(cell["source"]), names)
            values.append(value)
            text += printed
    tables = [value._repr_html_() for value in values if hasattr(value, "_repr_html_")]
    assert len(tables) == 2
    assert all(table.startswith("<table>") for table in tables)
    fits, longest, needed = values[1]
    assert (fits, longest > 1_000_000) == (True, True)
    assert isinstance(needed, int)
    assert "8,388,608 tokens" in text
    assert "Where the constants come from" in text or "source" in text
    fastest = values[2]
    assert len(fastest) == 5
    assert fastest == sorted(fastest, key=lambda row: row[2])


def test_it_needs_no_torch_and_names_what_it_is() -> None:
    source = NOTEBOOK.read_text(encoding="utf-8")
    assert "import torch" not in source
    assert (NOTEBOOK.parent / "README.md").is_file()
