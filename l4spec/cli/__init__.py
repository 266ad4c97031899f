"""The command line: one file per command, thin, importing what is heavy only when it runs."""

import errno
import gc
import os
import sys

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for them reads every installed package

from l4spec.cli.app import app
from l4spec.cli.output import complain

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; the exit code says how it went (see `l4spec --help`)."""
    gc.set_threshold(100_000, 20, 20)  # a command makes objects and ends: collecting often is a quarter of its time
    try:
        app(prog_name="l4spec")
    except BrokenPipeError:
        _forget_stdout()
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO):
            raise
        _forget_stdout()
        complain(f"error: cannot write to the terminal or file: {error.strerror}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _forget_stdout() -> None:
    """Nobody reads any more: keep the interpreter from complaining when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
