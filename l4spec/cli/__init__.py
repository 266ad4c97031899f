"""The command line: one thin file per command, which imports heavy modules only when it runs."""

import atexit
import gc
import os
import sys
from contextlib import suppress
from typing import TextIO

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for them reads every installed package
gc.set_threshold(100_000, 20, 20)  # a command makes objects and ends: collecting often is a quarter of its time

from l4spec.cli.app import USER_ERROR, app
from l4spec.cli.completion import accept_either_order
from l4spec.cli.output import complain
from l4spec.errors import os_reason

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; `l4spec --help` lists the exit codes."""
    accept_either_order()
    _open_closed_streams()
    atexit.register(gc.freeze)  # Python collects once more at exit, a sixth of a plan's time; memory is freed anyway
    code = _exit_code()
    _settle(sys.stderr)
    sys.exit(code)


def _open_closed_streams() -> None:
    """Lead a closed stdout or stderr nowhere: Python has None there, and the next file would get its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process lives


def _exit_code() -> int | str | None:
    """Exit code of the command, after its output is flushed; errors of the system are printed as one line."""
    try:
        try:
            app(prog_name="l4spec")
        except SystemExit as end:
            if sys.stdout is not None:
                sys.stdout.flush()
            return end.code
    except BrokenPipeError:
        _settle(sys.stdout)
        return 1
    except OSError as error:
        if os.environ.get("L4SPEC_DEBUG"):
            raise
        _settle(sys.stdout)
        where = "cannot write to the terminal or file" if error.filename is None else str(error.filename)[:200]
        complain(f"error: {where}: {os_reason(error)}")
        return USER_ERROR
    except KeyboardInterrupt:
        return 130
    return 0


def _settle(stream: TextIO | None) -> None:
    """Flush a stream; if its reader is gone, suppress the interpreter's error at exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
