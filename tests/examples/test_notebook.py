"""examples/notebook: every cell runs, in order, in one namespace, and shows what a notebook can show."""

import ast
import contextlib
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "notebook"
NOTEBOOK = FOLDER / "plan_llama4.ipynb"


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


def run_all(path: Path) -> tuple[list[Any], str]:
    """What the code cells show in order, and all that they print."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, Any] = {"__name__": "__main__"}
    values, text = [], ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "outputs are not kept: they would age"
            value, printed = run_cell("".join(cell["source"]), names)
            values.append(value)
            text += printed
    return values, text


def test_the_notebook_runs_from_top_to_bottom_and_shows_plans_as_tables() -> None:
    values, text = run_all(NOTEBOOK)
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


def test_the_search_notebook_finds_deployments_by_price() -> None:
    values, text = run_all(FOLDER / "search_deployment.ipynb")
    count, ranked, _, command = values
    assert count >= len(ranked) == 5
    assert all(len(row) == 4 for row in ranked)
    assert "tokens/s of a user" in text
    assert command.startswith("--gpus ")


def test_the_simulation_notebook_plans_then_simulates_a_chain() -> None:
    values, text = run_all(FOLDER / "simulate_load.ipynb")
    (num_gpus, _, _), stages, (p50, p99, attainment), _ = values
    assert num_gpus == 9
    assert [name for name, _, _ in stages] == ["prompt-guard", "guard-prompt", "answer", "guard-answer"]
    assert 0 < p50 < p99
    assert 0 < attainment <= 1
    assert "requests finished" in text


def test_the_training_notebook_shows_a_router_collapse_and_a_balanced_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = torch.get_num_threads()
    try:
        values, text = run_all(FOLDER / "train_router.ipynb")
    finally:
        torch.set_num_threads(before)
    (total, active, steps, flops), *_, written = values
    assert active < total
    assert flops > 0
    shown = re.findall(r"^(nothing|bias) +step +(\d+) +([\d.]+) of 8 ", text, re.MULTILINE)
    last = {variant: float(experts) for variant, step, experts in shown if int(step) == steps}
    # what the detector calls a collapse, and a load that is nearly even
    assert last["nothing"] < 0.4 * 8 < 0.9 * 8 < last["bias"]
    assert "warning: routing collapse" in text
    assert re.match(r"There is a \w+ \w+ in the \w+\. The ", written), written


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_listed_and_only_training_needs_torch(path: Path) -> None:
    assert ("import torch" in path.read_text(encoding="utf-8")) == path.stem.startswith("train")
    assert path.name in (FOLDER / "README.md").read_text(encoding="utf-8")
