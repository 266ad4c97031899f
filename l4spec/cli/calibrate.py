"""`l4spec calibrate`: this machine measured, and its profile written where plans find it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import INTERRUPTED, app
from l4spec.cli.build import ProgressOption
from l4spec.cli.output import complain, show_page, write_file
from l4spec.cli.progress import progress_bar
from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from l4spec.runtime.calibrate.run import Calibration


class ClockChoice(StrEnum):
    """Clock of measurements."""

    WALL = "wall"
    CPU = "cpu"


SecondsOption = Annotated[
    float,
    typer.Option(
        "--seconds", metavar="SECONDS", min=1, max=3600, help="How long to measure; below 40 gives a coarse profile."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, max=1024, help="Threads that compute.  [default: torch's own]"),
]
ClockOption = Annotated[
    ClockChoice,
    typer.Option("--clock", help="wall, or cpu: the CPU time of one thread, for a busy machine."),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Where to write it.  [default: where `--gpus 1xthis` finds it]"),
]


@app.command("calibrate")
def calibrate_command(
    seconds: SecondsOption = 100.0,
    threads: ThreadsOption = None,
    clock: ClockOption = ClockChoice.WALL,
    out: ProfileOption = None,
    force: o.ForceOption = False,
    show_progress: ProgressOption = None,
) -> None:
    """Measure this machine's CPU and write a hardware profile for `--gpus 1xthis`.

    Matmuls by size, attention, element-wise operations and Python overhead are timed as our module runs them, in
    fp32 and bf16. The machine should be otherwise idle. The profile of an earlier calibration is replaced.
    """
    from l4spec.report.calibrate import calibration_page, profile, profile_text
    from planners.catalog import user_folder

    if clock is ClockChoice.CPU and threads not in (None, 1):
        raise UserError([Problem("counts one thread alone", path="--clock cpu", hint="leave --threads out")])
    path = user_folder("hardware") / "this.yaml" if out is None else out
    _check_place(path, force=force or out is None)
    try:
        calibration = _measured(seconds, threads, clock, show_progress)
    except KeyboardInterrupt:
        complain("interrupted: nothing was written")
        raise typer.Exit(INTERRUPTED) from None
    hardware = profile(calibration)
    write_file(path, profile_text(hardware), force=force or out is None)
    complain(f"wrote {path}")
    show_page(calibration_page(hardware, "1xthis" if out is None else f"1x{path}"))


def _measured(seconds: float, threads: int | None, clock: ClockChoice, show_progress: bool | None) -> "Calibration":
    from l4spec.runtime.calibrate.run import calibrate

    with progress_bar("measuring", show_progress) as progress:
        return calibrate(seconds, threads=threads, clock=clock.value, progress=progress)


def _check_place(path: Path, *, force: bool) -> None:
    """Raise UserError before measuring if the result could not be written."""
    if path.exists() and (path.is_dir() or not force):
        hint = "name a file in it" if path.is_dir() else "--force overwrites it"
        raise UserError([Problem(f"{path} {'is a folder' if path.is_dir() else 'exists'}", path="--out", hint=hint)])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {path.parent}: {error.strerror}", hint="name another place with --out") from None
