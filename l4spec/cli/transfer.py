"""`l4spec transfer`: does a learning rate that is best for a small model stay the best as it grows?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.output import check_drawing, check_file, complain, show_page, write_file
from l4spec.cli.train import RecipeArgument
from l4spec.errors import Problem, UserError
from l4spec.report.csv_text import to_csv
from l4spec.report.templating import figure_svg

if TYPE_CHECKING:
    from l4spec.report.page import Section
    from l4spec.training.transfer import TransferPoint
    from l4spec.training.transfer_job import GrowthAxis, Sweep, TransferJob


def _factors(flag: str, quantity: str) -> object:
    return typer.Option(flag, metavar="LIST", help=f"Factors on {quantity} to train at, as 1,2,4.")


RatesOption = Annotated[
    str, typer.Option("--rates", metavar="LIST", help="Factors on the recipe's learning rate to train with.")
]
FeaturesOption = Annotated[
    int | None,
    typer.Option(
        "--features",
        metavar="STEPS",
        min=1,
        help="Instead: a coordinate check, the sizes of all layers' outputs after STEPS steps.",
    ),
]
SeedsOption = Annotated[
    int,
    typer.Option("--repeats", metavar="N", min=1, max=100, help="Number of seeds, from the recipe's seed on."),
]
CpuThreadsOption = Annotated[int, typer.Option("--threads", metavar="N", min=1, max=1024, help="Threads that compute.")]


@app.command("transfer")
def transfer_command(
    recipe: RecipeArgument,
    overrides: o.RecipeSetOption = None,
    width_times: Annotated[str | None, _factors("--width-times", "the model's width")] = None,
    depth_times: Annotated[str | None, _factors("--depth-times", "the number of layers")] = None,
    batch_times: Annotated[str | None, _factors("--batch-times", "the batch size")] = None,
    tokens_times: Annotated[str | None, _factors("--tokens-times", "the tokens trained on")] = None,
    rates: RatesOption = "0.125,0.25,0.5,1,2,4,8",
    features: FeaturesOption = None,
    repeats: SeedsOption = 1,
    threads: CpuThreadsOption = 1,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write every run as CSV.")] = None,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg",
            metavar="FILE",
            parser=o.file_to_write,
            help="Plot the losses, or the outputs' sizes of --features.",
        ),
    ] = None,
    force: o.ForceOption = False,
) -> None:
    """Train a recipe's first phase at several sizes and learning rates, and show where the best rate is.

    With the parametrization `completedp` (or `mup` over width) the best rate stays the same as the model grows; with
    `standard` it changes. Several seeds (--repeats) give standard errors.
    """
    from l4spec.sharding.layout import Layout
    from l4spec.training.transfer_job import Sweep, TransferJob

    job = TransferJob(recipe, Layout(), tuple(overrides or ()), threads=threads)
    job.check()
    axes = _axes({"width": width_times, "depth": depth_times, "batch": batch_times, "tokens": tokens_times})
    factors = _numbers(rates)
    _check(job, axes)
    _check_files(axes, svg, csv_file, force=force)
    seeds = range(job.loaded.recipe.seed, job.loaded.recipe.seed + repeats)
    shown = []
    for axis, times in axes:
        work = Sweep(axis, times, factors, seeds)
        shown.append(_swept(job, work) if features is None else _features(job, work, features))
        show_page((shown[-1].section,))
    if csv_file is not None:
        rows = [row for one in shown for row in one.rows]
        write_file(csv_file, to_csv(tuple(rows[0]), rows), force=force)
    if svg is not None:
        write_file(svg, figure_svg(shown[0].section), force=force)
        complain(f"wrote {svg}")


def _axes(asked: "Mapping[GrowthAxis, str | None]") -> "list[tuple[GrowthAxis, list[int]]]":
    """The axes to grow, each with its growths in order, each once."""
    axes = [(axis, _whole_numbers(text, f"--{axis}-times")) for axis, text in asked.items() if text is not None]
    if not axes:
        raise UserError([Problem("nothing to do", hint="--width-times 1,2,4 grows the width")])
    return axes


def _check(job: "TransferJob", axes: "Sequence[tuple[GrowthAxis, list[int]]]") -> None:
    """Raise UserError, before the first run, where a grown one could not run or has no room."""
    from l4spec.runtime.parallel.run.memory_check import require_room

    for axis, times in axes:
        for number in times:
            grown = replace(job, axis=axis, times=number)
            grown.check()
            require_room(grown)


def _check_files(
    axes: "Sequence[tuple[GrowthAxis, list[int]]]", svg: Path | None, csv: Path | None, *, force: bool
) -> None:
    """Raise UserError, before hours of runs, where no picture or table could be drawn or written after them."""
    if csv is not None:
        check_file(csv, "--csv", force=force)
    if svg is None:
        return
    if len(axes) > 1:
        raise UserError([Problem("one picture is of one axis", "--svg", hint=f"only --{axes[0][0]}-times")])
    check_drawing(svg, force=force)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A section of the page, and its rows for CSV."""

    section: "Section"
    rows: list[dict[str, object]]


def _swept(job: "TransferJob", asked: "Sweep") -> _Shown:
    from l4spec.report.transfer_page import sweep_section
    from l4spec.training.transfer import sweep, transferred

    points = sweep(job, asked, _tell)
    return _Shown(sweep_section(points, transferred(points)), [asdict(point) for point in points])


def _features(job: "TransferJob", asked: "Sweep", num_steps: int) -> _Shown:
    from l4spec.report.transfer_page import features_section
    from l4spec.training.transfer import feature_sizes

    sizes = feature_sizes(job, asked.axis, asked.times, asked.seeds, num_steps)
    return _Shown(features_section(sizes, num_steps), [asdict(size) for size in sizes])


def _tell(point: "TransferPoint") -> None:
    complain(f"{point.axis} x{point.times}  rate x{point.rate:g}  seed {point.seed}  loss {point.loss:.4f}")


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < 1e6 for number in numbers):
        raise UserError([Problem(f"expected numbers above 0, as 0.5,1,2, found {text[:60]!r}", "--rates")])
    return sorted(set(numbers))


def _whole_numbers(text: str, flag: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and 1 <= int(part) <= 1024 for part in parts):
        raise UserError([Problem(f"expected whole numbers from 1, as 1,2,4, found {text[:60]!r}", flag)])
    return sorted({int(part) for part in parts})
