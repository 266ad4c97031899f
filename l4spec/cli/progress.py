"""Progress bar on stderr for long work: on a terminal, or with `--progress`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from l4spec.progress import Progress

_STEPS = 1000


@contextmanager
def progress_bar(label: str, asked_for: bool | None) -> Iterator[Progress | None]:
    """Context manager of a progress bar: gives its callback, or None if no bar is shown.

    With `asked_for` None it is shown if stderr is a terminal.
    """
    if not (sys.stderr.isatty() if asked_for is None else asked_for):
        yield None
        return
    with typer.progressbar(length=_STEPS, label=label, file=sys.stderr) as bar:
        shown = 0

        def update(done: int, total: int) -> None:
            nonlocal shown
            now = _STEPS * done // max(1, total)
            bar.update(now - shown)
            shown = now

        yield update
