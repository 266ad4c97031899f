"""`l4spec measure`: builds and runs a spec, and compares its plan with the run."""

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import CLAIM_FAILED, INTERRUPTED, app
from l4spec.cli.build import (
    DeviceOption,
    DtypeOption,
    LayersOption,
    PackingOption,
    ProgressOption,
    ScaleOption,
    SeedOption,
)
from l4spec.cli.output import complain, write
from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from l4spec.progress import StageProgress
    from l4spec.runtime.measure.job import MeasureJob
    from l4spec.verification.measure import MeasureReport

PrefillOption = Annotated[
    int,
    typer.Option("--prefill", metavar="TOKENS", parser=o.tokens_from(1), help="Tokens of each prompt, as 256 or 4k."),
]
DecodeOption = Annotated[
    int, typer.Option("--decode", metavar="TOKENS", parser=o.tokens_from(0), help="Steps after the prompt.")
]
TrainOption = Annotated[bool, typer.Option("--train", help="Also count a forward and backward pass over the prompts.")]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch", metavar="N", help="Sequences at a time, over all ranks.  [default: 1, or dp x ep]"),
]
LimitOption = Annotated[
    float | None,
    typer.Option(
        "--time-limit", metavar="SECONDS", min=0, help="Stop measuring after this time, and report what is done."
    ),
]


@app.command("measure")
def measure_command(
    spec: o.SpecArgument,
    overrides: o.SetOption = None,
    scale: ScaleOption = None,
    layers: LayersOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: PackingOption = None,
    tp: Annotated[int, typer.Option("--tp", min=1, metavar="N", help="Tensor-parallel degree.")] = 1,
    ep: Annotated[int, typer.Option("--ep", min=1, metavar="N", help="Expert-parallel degree.")] = 1,
    pp: Annotated[int, typer.Option("--pp", min=1, metavar="N", help="Pipeline stages.")] = 1,
    dp: Annotated[int, typer.Option("--dp", min=1, metavar="N", help="Data-parallel degree.")] = 1,
    cp: Annotated[int, typer.Option("--cp", min=1, metavar="N", help="Ranks that divide each prompt's tokens.")] = 1,
    prefill: PrefillOption = 256,
    decode: DecodeOption = 8,
    batch: BatchOption = None,
    tiles: o.TilesOption = 0,
    train: TrainOption = False,
    seed: SeedOption = 0,
    time_limit: LimitOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    out: o.OutOption = None,
    force: o.ForceOption = False,
    show_progress: ProgressOption = None,
) -> None:
    """Run a spec and compare its plan with the measurement, row by row.

    Parameters, FLOPs and caches must agree exactly, the activation peak within a quarter above what was measured.
    With degrees, as --tp 2 --ep 2, ranks are started on this machine, and each one's weights, caches, FLOPs and
    collectives are compared with the plan of its layout. Exit code 1 when a row does not agree, 4 when a rank fails.
    The whole model is run, or a miniature of it by --scale or --layers.
    """
    from l4spec.sharding.layout import Layout

    layout = Layout(tp=tp, ep=ep, pp=pp, dp=dp, cp=cp)
    if layout.num_devices > 1:
        from l4spec.runtime.measure.job import MeasureJob
        from l4spec.verification.run_measure_ranks import require_plain

        require_plain(device, quantization, tiles)
        job = MeasureJob(
            spec,
            layout,
            tuple(overrides or ()),
            scale,
            layers,
            dtype=dtype.value if dtype else None,
            seed=seed,
            prefill=prefill,
            decode=decode,
            batch=dp * ep if batch is None else batch,
            train=train,
            progress=_is_shown(show_progress),
        )
        report = _of_ranks(job, time_limit)
    else:
        import l4spec
        from l4spec.verification.run_measure import measure

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
                batch=1 if batch is None else batch,
                tiles=tiles,
                train=train,
                seed=seed,
                time_limit=time_limit,
                progress=_stage_progress(show_progress),
            )
    from l4spec.report.measure_page import measure_page

    write(report, lambda: measure_page(report), format, out, force=force)
    if not report.agrees:
        raise typer.Exit(CLAIM_FAILED)


def _of_ranks(job: "MeasureJob", time_limit: float | None) -> "MeasureReport":
    """Exits with 4 and the message on stderr when a rank fails, with 130 when interrupted."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's own log tells a user nothing
    from l4spec.verification.run_measure_ranks import RanksEnded, measure_ranks

    try:
        return measure_ranks(job, time_limit=time_limit, progress=complain if job.progress else None)
    except RanksEnded as ended:
        complain(str(ended))
        raise typer.Exit(ended.code) from None


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


def _stage_progress(show_progress: bool | None) -> "StageProgress | None":
    return (lambda stage: complain(f"measuring {stage} ...")) if _is_shown(show_progress) else None


def _is_shown(show_progress: bool | None) -> bool:
    return sys.stderr.isatty() if show_progress is None else show_progress
