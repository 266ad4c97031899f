"""The first answer comes quickly because nothing is imported that it does not need."""

import subprocess
import sys

SLOW = {"torch", "numpy", "networkx", "tabulate", "rich", "jsonschema", "transformers"}


def imported_by(*arguments: str) -> set[str]:
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        f"sys.argv = ['l4spec', *{arguments!r}]; import l4spec.cli; l4spec.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return {name.split(".")[0] for name in done.stderr.split()}


def test_a_plan_imports_nothing_slow() -> None:
    imported = imported_by("plan", "scout", "--gpus", "8xH100")
    assert "pydantic" in imported
    assert not imported & SLOW


def test_tables_are_drawn_by_tabulate_only_when_there_are_any() -> None:
    assert "tabulate" in imported_by("plan", "scout", "--gpus", "8xH100", "-v")
