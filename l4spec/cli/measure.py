"""`l4spec measure`: a spec built and run, its plan held against what the run shows."""

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import CLAIM_FAILED, app
from l4spec.cli.build import (
    DeviceOption,
    DtypeOption,
    LayersOption,
    PackingOption,
    ProgressOption,
    ScaleOption,
    SeedOption,
)
from l4spec.cli.output import complain, deliver
from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from l4spec.report.measure import MeasureReport

PrefillOption = Annotated[
    int,
    typer.Option("--prefill", metavar="TOKENS", parser=o.tokens_from(1), help="Tokens of each prompt, as 256 or 4k."),
]
DecodeOption = Annotated[
    int, typer.Option("--decode", metavar="TOKENS", parser=o.tokens_from(0), help="Steps after the prompt.")
]
TrainOption = Annotated[bool, typer.Option("--train", help="Also count a forward and backward pass over the prompts.")]
LimitOption = Annotated[
    float | None,
    typer.Option("--time-limit", metavar="SECONDS", min=0, help="Stop measuring then, with what there is."),
]
INTERRUPTED = 130


@app.command("measure")
def measure_command(
    spec: o.SpecArgument,
    overrides: o.SetOption = None,
    scale: ScaleOption = None,
    layers: LayersOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: PackingOption = None,
    prefill: PrefillOption = 256,
    decode: DecodeOption = 8,
    batch: o.BatchOption = 1,
    tiles: o.TilesOption = 0,
    train: TrainOption = False,
    seed: SeedOption = 0,
    time_limit: LimitOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    out: o.OutOption = None,
    force: o.ForceOption = False,
    show_progress: ProgressOption = None,
) -> None:
    """Run a spec and print its plan beside what was measured, row by row, with the difference.

    Parameters, FLOPs and caches must agree exactly, the activation peak within a quarter above what was measured.
    Exit code 1 when a row does not agree. The whole model is run, or a miniature of it by --scale or --layers.
    """
    import l4spec
    from l4spec.report.run_measure import measure

    with _interruptible():
        report = measure(
            l4spec.load(spec, overrides or ()),
            scale=scale,
            num_layers=layers,
            device=_computing_device(device),
            dtype=dtype.value if dtype else None,
            quantization=quantization,
            prefill=prefill,
            decode=decode,
            batch=batch,
            tiles=tiles,
            train=train,
            seed=seed,
            time_limit=time_limit,
            tell=_teller(show_progress),
        )
    deliver(_text(report, format), out, force=force)
    if not report.agrees:
        raise typer.Exit(CLAIM_FAILED)


@contextmanager
def _interruptible() -> "Iterator[None]":
    """Leave with a word, and no traceback, when the user has had enough."""
    try:
        yield
    except KeyboardInterrupt:
        complain("interrupted: nothing was written")
        raise typer.Exit(INTERRUPTED) from None


def _computing_device(device: str | None) -> str:
    from l4spec.runtime.devices import checked_device

    if device == "meta":
        raise UserError([Problem("expected a device that computes, found meta", path="--device")])
    return checked_device("cpu" if device is None else device)


def _teller(show_progress: bool | None) -> "Callable[[str], None] | None":
    talks = sys.stderr.isatty() if show_progress is None else show_progress
    return (lambda stage: complain(f"measuring {stage} ...")) if talks else None


def _text(report: "MeasureReport", style: o.Format) -> str:
    from l4spec.report.measure import measure_page
    from l4spec.report.page import to_markdown, to_text

    if style is o.Format.JSON:
        return report.model_dump_json(indent=2)
    page = measure_page(report)
    return to_markdown(page) if style is o.Format.MARKDOWN else to_text(page)
