"""Progress of a training's phases, updated in place on a terminal, else printed line by line."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from l4spec.cli.output import printable

if TYPE_CHECKING:
    from l4spec.spec.recipe import Phase
    from l4spec.training.recipe.metrics import StepProgress

    PhaseProgress = Callable[[StepProgress], None]


@contextmanager
def training_display(
    log: Callable[[str], None], phases: "Sequence[Phase]", named: Callable[[str], str]
) -> "Iterator[tuple[Callable[[str], None], PhaseProgress | None]]":
    """Functions that print lines and that show a step; the latter is None if stdout is no terminal that can redraw.

    Lines printed meanwhile, formatted by `named`, appear above the bars, which stay as they end.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not (sys.stdout.isatty() and console.is_interactive):
        yield log, None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    numbers = TextColumn("{task.fields[numbers]}", markup=False)
    with Progress(*columns, numbers, TimeRemainingColumn(), console=console) as display:
        bars = {one.name: display.add_task(one.name, total=one.num_steps, numbers="", start=False) for one in phases}
        started = set[str]()

        def above(line: str) -> None:
            console.print(printable(named(line), console.encoding), markup=False, soft_wrap=True)

        def progress(now: "StepProgress") -> None:
            if now.phase not in started:
                started.add(now.phase)
                display.start_task(bars[now.phase])
            numbers = f"loss {now.loss:.4f}  {now.tokens_per_second:,.0f} tokens/s"
            display.update(bars[now.phase], completed=now.step, numbers=numbers)

        yield above, progress
