"""`l4spec run`: a layout run by its ranks, under torchrun or on this machine."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.build import DeviceOption, DtypeOption, LayersOption, ScaleOption, SeedOption
from l4spec.cli.output import complain
from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from l4spec.sharding.layout import Layout


class Switch(StrEnum):
    """Value of an on/off option."""

    ON = "on"
    OFF = "off"


class Recomputed(StrEnum):
    """Activations that training recomputes in its backward pass (`l4spec.layers.common.checkpointing`)."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


NprocOption = Annotated[
    int | None,
    typer.Option("--nproc", metavar="N", min=1, help="Start N ranks on this machine.  [default: as the degrees need]"),
]
StepsOption = Annotated[
    int,
    typer.Option("--steps", metavar="N", min=0, help="Train up to step N, on synthetic text that depends on --seed."),
]
GenerateOption = Annotated[
    int, typer.Option("--generate", metavar="N", min=0, help="Then generate N tokens per prompt.")
]
IdsOption = Annotated[
    str | None,
    typer.Option("--ids", metavar="IDS", help="The prompt as token ids.  [default: pieces of the synthetic text]"),
]
BatchOption = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Sequences of a step, over all ranks.")]
ContextOption = Annotated[
    int,
    typer.Option(
        "--context", metavar="TOKENS", parser=o.tokens_from(1), help="Tokens of each sequence, as 64, 8k or 8Ki."
    ),
]
CheckpointingOption = Annotated[
    Recomputed | None,
    typer.Option(
        "--checkpointing",
        help="Recompute for the backward pass: nothing, the core of attention, or blocks.  [default: none]",
    ),
]
SequenceParallelOption = Annotated[
    Switch, typer.Option("--sequence-parallel", help="Divide norms and residual streams among the ranks of tp.")
]
RateOption = Annotated[float, typer.Option("--learning-rate", metavar="RATE", min=0.0, help="Learning rate of AdamW.")]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="DIR",
        help="Save a sharded checkpoint to DIR/step-N at the end, readable by any layout.",
    ),
]
SaveEveryOption = Annotated[
    int | None, typer.Option("--save-every", metavar="N", min=1, help="With --checkpoint: also every N steps.")
]
LogEveryOption = Annotated[
    int, typer.Option("--log-every", metavar="N", min=1, help="Print every Nth step, and the last.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Resume from the last step in --checkpoint, written by any layout.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="DIR", help="Start from a checkpoint: a step's folder, or Hugging Face's layout."
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write the weights in Hugging Face's layout to a new folder."),
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", metavar="SECONDS", min=1.0, help="Longest wait for a rank that does not answer."),
]


@app.command("run")
def run_command(
    spec: o.SpecArgument,
    overrides: o.SetOption = None,
    tp: Annotated[int, typer.Option("--tp", min=1, metavar="N", help="Tensor-parallel degree.")] = 1,
    ep: Annotated[int, typer.Option("--ep", min=1, metavar="N", help="Expert-parallel degree.")] = 1,
    pp: Annotated[int, typer.Option("--pp", min=1, metavar="N", help="Pipeline stages.")] = 1,
    dp: Annotated[
        int | None, typer.Option("--dp", min=1, metavar="N", help="Data-parallel degree.  [default: the ranks left]")
    ] = None,
    nproc: NprocOption = None,
    scale: ScaleOption = None,
    layers: LayersOption = None,
    steps: StepsOption = 0,
    generate: GenerateOption = 0,
    ids: IdsOption = None,
    batch: BatchOption = 4,
    context: ContextOption = 64,
    learning_rate: RateOption = 1e-3,
    log_every: LogEveryOption = 1,
    checkpointing: CheckpointingOption = None,
    sequence_parallel: SequenceParallelOption = Switch.OFF,
    weights: WeightsOption = None,
    checkpoint: CheckpointOption = None,
    save_every: SaveEveryOption = None,
    resume: ResumeOption = False,
    out: OutOption = None,
    verify: o.VerifyOption = True,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    timeout: TimeoutOption = 60.0,
) -> None:
    """Run a layout on torch.distributed: each rank builds its part of the model, to train or to generate.

    By itself it starts the ranks on this machine; with `torchrun ... -m l4spec run` each process is a rank. Layouts
    that the model or the batch does not allow are refused before any process starts. If a rank fails, all end, one
    message names the rank and the reason, and the exit code is 4; checkpoints are written completely or not at all.
    """
    from l4spec.runtime.parallel.run.memory_check import require_room
    from l4spec.training.run.job import Job

    environment = prepare_ranks()
    job = Job(
        spec,
        layout_of(tp, ep, pp, dp, nproc, environment),
        tuple(overrides or ()),
        scale,
        layers,
        run_device(device),
        dtype.value if dtype else None,
        seed,
        batch,
        context,
        steps,
        learning_rate,
        generate,
        None if ids is None else _ids(ids),
        weights,
        checkpoint,
        save_every,
        resume,
        out,
        verify,
        checkpointing.value if checkpointing else "none",
        sequence_parallel is Switch.ON,
        timeout=timeout,
        log_every=log_every,
    )
    if environment is not None:
        if nproc is not None:
            raise UserError([Problem("torchrun has started the ranks already", "--nproc", hint="leave it out")])
        from l4spec.runtime.parallel.run.rank import run_rank

        run_rank(job)
    job.check()
    require_room(job)
    from l4spec.runtime.parallel.run.launch import launch

    code = launch(job, complain)
    if code:
        raise typer.Exit(code)


def prepare_ranks() -> int | None:
    """The world size where torchrun has started this process, else None; torch's own log tells a user nothing."""
    import os

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    size = os.environ.get("WORLD_SIZE", "") if "RANK" in os.environ else ""
    return int(size) if size.isdecimal() else None


def layout_of(tp: int, ep: int, pp: int, dp: int | None, nproc: int | None, world: int | None) -> "Layout":
    """The degrees, dp from the number of ranks where it is not given. Raises UserError where --nproc is another."""
    from l4spec.sharding.layout import Layout

    rest = tp * ep * pp
    layout = Layout(tp=tp, ep=ep, pp=pp, dp=max(1, (nproc or world or rest) // rest) if dp is None else dp)
    if nproc is not None and layout.num_devices != nproc:
        raise UserError([Problem(f"{layout} makes {layout.num_devices} ranks, not {nproc}", "--nproc")])
    return layout


def run_device(device: str | None) -> str:
    """`cpu`, or an accelerator that is here. Raises UserError for another."""
    if device == "meta":
        raise UserError([Problem("expected a device that computes, found meta", path="--device")])
    if device in (None, "cpu"):
        return "cpu"
    from l4spec.runtime.devices import checked_device

    assert device is not None
    return checked_device(device)


def _ids(text: str) -> tuple[int, ...]:
    from l4spec.cli.generate import numbers

    return tuple(numbers(text, "--ids"))
