"""A bar on stderr for long work: on a terminal, or where asked for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

_STEPS = 1000


@contextmanager
def progress(label: str, asked_for: bool | None) -> Iterator[Callable[[int, int], None] | None]:
    """A function to call with (done, all), which draws a bar; None where no bar is shown.

    `asked_for` None means: where stderr is a terminal.
    """
    if not (sys.stderr.isatty() if asked_for is None else asked_for):
        yield None
        return
    with typer.progressbar(length=_STEPS, label=label, file=sys.stderr) as bar:
        shown = 0

        def report(done: int, total: int) -> None:
            nonlocal shown
            now = _STEPS * done // max(1, total)
            bar.update(now - shown)
            shown = now

        yield report
