"""The command line: one file per command, thin, importing what is heavy only when it runs."""

import os
import sys

from l4spec.cli import commands as _commands  # noqa: F401 - registers every command
from l4spec.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; the exit code says how it went (see `l4spec --help`)."""
    try:
        app(prog_name="l4spec")
    except BrokenPipeError:
        _forget_stdout()
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _forget_stdout() -> None:
    """Nobody reads any more: keep the interpreter from complaining when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
