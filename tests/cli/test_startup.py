"""The first answer comes quickly because nothing is imported that it does not need."""

import subprocess
import sys
from pathlib import Path

import typer

import l4spec.cli
from l4spec.cli import app
from l4spec.cli.commands import COMMANDS

SLOW = {"torch", "numpy", "networkx", "tabulate", "rich", "jsonschema", "transformers", "jinja2"}


def modules_of(*arguments: str) -> list[str]:
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        f"sys.argv = ['l4spec', *{arguments!r}]; import l4spec.cli; l4spec.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stderr.split()


def imported_by(*arguments: str) -> set[str]:
    return {name.split(".")[0] for name in modules_of(*arguments)}


def test_a_plan_imports_nothing_slow() -> None:
    imported = imported_by("plan", "scout", "--gpus", "8xH100")
    assert "pydantic" in imported
    assert not imported & SLOW


def test_tables_are_drawn_by_tabulate_only_when_there_are_any() -> None:
    assert "tabulate" in imported_by("plan", "scout", "--gpus", "8xH100", "-v")


def test_a_command_imports_no_other_one() -> None:
    loaded = {
        name.removeprefix("l4spec.cli.") for name in modules_of("show", "scout") if name.startswith("l4spec.cli.")
    }
    assert loaded & COMMANDS.keys() == {"show"}


def test_help_imports_no_command_and_says_what_each_does() -> None:
    assert not {"pydantic", "yaml"} & imported_by("--help")
    group = typer.main.get_group(app)
    context = group.context_class(group)
    for name, says in COMMANDS.items():
        command = group.get_command(context, name)
        assert command is not None
        assert command.help is not None
        assert " ".join(command.help.split()).startswith(says), name


def test_every_command_file_is_listed() -> None:
    files = {path for path in Path(l4spec.cli.__file__).parent.glob("*.py") if "@app.command(" in path.read_text()}
    assert {path.stem.rstrip("_") for path in files} == COMMANDS.keys()
