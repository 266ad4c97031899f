"""Every command and every option is documented, and docs/cli.md is what `--help` says."""

from pathlib import Path
from typing import Any

import pytest
import typer

from l4spec.cli import app
from l4spec.cli.reference import reference

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, Any] = dict(typer.main.get_group(app).commands)


def test_the_reference_is_in_step_with_the_help() -> None:
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m l4spec.cli.reference > docs/cli.md"


def test_every_command_is_in_the_reference() -> None:
    assert len(COMMANDS) >= 10
    assert all(f"## l4spec {name}\n" in reference() for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    unexplained = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
    assert not unexplained


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_that_takes_a_spec_takes_overrides(name: str) -> None:
    parameters = {parameter.name for parameter in COMMANDS[name].params}
    assert not parameters & {"spec", "specs"} or "overrides" in parameters
