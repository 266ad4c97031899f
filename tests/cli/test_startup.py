"""The first answer comes quickly because nothing is imported that it does not need."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import typer

import l4spec.cli
import l4spec.layers
from l4spec.cli import app
from l4spec.cli.app import DOES_NOT_FIT
from l4spec.cli.commands import COMMANDS
from l4spec.layers import KINDS, OWN_NAMES

SLOW = {"torch", "numpy", "networkx", "tabulate", "rich", "jsonschema", "transformers", "jinja2"}


def modules_of(*arguments: str) -> list[str]:
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
        f"sys.argv = ['l4spec', *{arguments!r}]; import l4spec.cli; l4spec.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (0, DOES_NOT_FIT), done.stderr
    return done.stderr.split()


def imported_by(*arguments: str) -> set[str]:
    return {name.split(".")[0] for name in modules_of(*arguments)}


def test_a_plan_imports_nothing_slow() -> None:
    imported = imported_by("plan", "scout", "--gpus", "8xH100")
    assert "pydantic" in imported
    assert not imported & SLOW


def test_no_garbage_is_collected_at_exit() -> None:
    code = (
        "import atexit, gc, sys; atexit.register(lambda: print(len(gc.get_objects()))); "
        "sys.argv = ['l4spec', '--version']; import l4spec.cli; l4spec.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout.split()[-1]) < 100  # thousands of modules' functions and classes without `gc.freeze`


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


def test_only_the_kinds_of_a_model_are_imported() -> None:
    loaded = {name.split(".")[2] for name in modules_of("plan", "tiny/scout", "--gpus", "8xH100") if ".layers." in name}
    assert {"gqa", "moe", "rmsnorm"} <= loaded
    assert not loaded & {"gated_delta_net", "kda", "mamba2", "mla", "recurrent"}


def test_a_plan_of_a_model_reads_no_schema_of_recipes() -> None:
    assert not [name for name in modules_of("plan", "scout", "--gpus", "8xH100") if ".spec.recipe" in name]


def test_a_plan_of_serving_imports_nothing_of_training() -> None:
    loaded = modules_of("plan", "scout", "--gpus", "8xH100")
    assert "planners.timing.step" in loaded
    training = ("planners.device.training_state", "planners.search.training_choice", "planners.timing.training_step")
    assert not set(loaded) & set(training)


def test_a_plan_of_what_does_not_fit_estimates_no_times_that_its_page_does_not_show() -> None:
    page, document = (modules_of("plan", "scout", "--gpus", "2xH100", "--format", name) for name in ("table", "json"))
    assert not [name for name in page if name.startswith("planners.timing.")]
    assert "planners.timing.step" in document


def test_every_kind_is_listed_by_the_name_of_its_folder() -> None:
    rooms = {path.parent.name for path in Path(l4spec.layers.__file__).parent.glob("*/__init__.py")}
    kinds = {room for room in rooms if hasattr(import_module(f"l4spec.layers.{room}"), "KIND")}
    assert sorted(OWN_NAMES) == sorted(kinds)
    assert [KINDS[name].name for name in OWN_NAMES] == list(OWN_NAMES)
