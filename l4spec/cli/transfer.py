"""`l4spec transfer`: does a learning rate that is best for a small model stay the best as it grows?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import complain, deliver, page_in, show_page, write_file
from l4spec.cli.train import RecipeArgument, RepeatsOption, ThreadsOption
from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from l4spec.training.transfer import GrowthAxis, TransferJob, TransferPoint

_COLUMNS = ("axis", "times", "rate", "seed", "loss")
_TIMES = "Growths to train at, as 1,2,4."


def _option(flag: str) -> object:
    return typer.Option(flag, metavar="LIST", help=_TIMES)


@app.command("transfer")
def transfer_command(
    recipe: RecipeArgument,
    overrides: o.SetOption = None,
    width_times: Annotated[str | None, _option("--width-times")] = None,
    depth_times: Annotated[str | None, _option("--depth-times")] = None,
    batch_times: Annotated[str | None, _option("--batch-times")] = None,
    tokens_times: Annotated[str | None, _option("--tokens-times")] = None,
    rates: Annotated[
        str, typer.Option("--rates", metavar="LIST", help="Factors on the recipe's learning rate.")
    ] = "0.125,0.25,0.5,1,2,4,8",
    features: Annotated[
        int | None, typer.Option("--features", metavar="STEPS", min=1, help="Coordinate check after so many steps.")
    ] = None,
    repeats: RepeatsOption = 1,
    threads: ThreadsOption = 1,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write every run as CSV.")] = None,
    force: o.ForceOption = False,
) -> None:
    """Train a recipe's first phase at several sizes and learning rates, and show where the best rate is.

    With the parametrization `completedp` (or `mup` over width) it stays the same; with `standard` it changes. With
    --features, the mean size of every layer's outputs as the model grows.
    """
    from l4spec.report.csv_text import to_csv
    from l4spec.sharding.layout import Layout
    from l4spec.training.transfer import Sweep, TransferJob, sweep

    job = TransferJob(recipe, Layout(), tuple(overrides or ()), threads=threads)
    job.check()
    asked = {"width": width_times, "depth": depth_times, "batch": batch_times, "tokens": tokens_times}
    axes: list[tuple[GrowthAxis, list[int]]] = [
        (axis, _whole_numbers(text, f"--{axis}-times"))  # type: ignore[misc]  # the keys are axes
        for axis, text in asked.items()
        if text
    ]
    if not axes:
        raise UserError([Problem("nothing to do", hint="--width-times 1,2,4 grows the width")])
    seeds = range(job.loaded.recipe.seed, job.loaded.recipe.seed + repeats)
    points: list[TransferPoint] = []
    for axis, times in axes:
        if features is not None:
            _show_features(job, axis, times, features)
            continue
        swept = sweep(job, Sweep(axis, times, _numbers(rates), seeds), _tell)
        deliver(_table(swept), None)
        points += swept
    if csv_file is not None:
        rows = ({name: getattr(point, name) for name in _COLUMNS} for point in points)
        write_file(csv_file, to_csv(_COLUMNS, rows), force=force)


def _tell(point: "TransferPoint") -> None:
    complain(f"{point.axis} x{point.times}  rate x{point.rate:g}  seed {point.seed}  loss {point.loss:.4f}")


def _table(points: "list[TransferPoint]") -> str:
    """A row for each growth, a column for each rate; the best of a row is starred."""
    from l4spec.report.page import Lines, Section, Table
    from l4spec.training.transfer import DIVERGED, best_rates

    best = best_rates(points)
    rates = list(dict.fromkeys(point.rate for point in points))
    rows = []
    for times in best:
        cells = []
        for rate in rates:
            losses = [point.loss for point in points if (point.times, point.rate) == (times, rate)]
            mean = sum(losses) / len(losses)
            text = "diverged" if mean >= DIVERGED / 2 else f"{mean:.4f}"
            cells.append(text + ("*" if rate == best[times] else " "))
        rows.append((f"{points[0].axis} x{times}", *cells))
    indices = [rates.index(rate) for rate in best.values()]
    moved = f"the best rate moves by {max(indices) - min(indices)} steps of the grid"
    table = Table(("", *(f"rate x{rate:g}" for rate in rates)), tuple(rows))
    return page_in((Section(f"Loss over {points[0].axis}", (table, Lines((moved,)))),), o.Format.TABLE)


def _show_features(job: "TransferJob", axis: "GrowthAxis", times: list[int], steps: int) -> None:
    from dataclasses import replace

    from l4spec.report.page import Section, Table
    from l4spec.training.transfer import features

    by_times = {number: features(replace(job, axis=axis, times=number), steps) for number in times}
    names = [name for name in by_times[times[0]] if all(name in sizes for sizes in by_times.values())]
    rows = tuple((name, *(f"{by_times[number][name]:.4f}" for number in times)) for name in names)
    table = Table(("", *(f"{axis} x{number}" for number in times)), rows)
    show_page((Section(f"Mean |output| after {steps} steps", (table,)),))


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < 1e6 for number in numbers):
        raise UserError([Problem(f"expected numbers above 0, as 0.5,1,2, found {text[:60]!r}", "--rates")])
    return numbers


def _whole_numbers(text: str, flag: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and 1 <= int(part) <= 1024 for part in parts):
        raise UserError([Problem(f"expected whole numbers from 1, as 1,2,4, found {text[:60]!r}", flag)])
    return [int(part) for part in parts]
