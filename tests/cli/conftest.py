"""A runner for the command line, in this process."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from l4spec.cli import app

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("plan", "scout")`: the result with `exit_code`, `stdout` and `stderr`."""
    monkeypatch.delenv("L4SPEC_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "400")  # so wide that no sentence is broken; tests of widths set their own

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), prog_name="l4spec")

    return invoke
