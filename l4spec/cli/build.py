"""`l4spec build`: a spec as a PyTorch module, checked against the plan, and a miniature of it run."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l4spec.cli import options as o
from l4spec.cli.app import CLAIM_FAILED, app
from l4spec.cli.output import complain, show
from l4spec.cli.progress import progress
from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from l4spec.report.built import Built
    from l4spec.runtime.model import Model
    from l4spec.spec.model import ModelSpec


class Dtype(StrEnum):
    """Number formats of weights."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


ScaleOption = Annotated[
    str | None,
    typer.Option("--scale", metavar="SCALE", help="Run a miniature: tiny, or a ratio of the widths as 1/64."),
]
LayersOption = Annotated[
    int | None, typer.Option("--layers", metavar="N", help="Run the first N layers of the language model.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="Run on cpu, cuda or cuda:N; meta allocates nothing."),
]
DtypeOption = Annotated[Dtype | None, typer.Option("--dtype", help="Weights in this format.  [default: the spec's]")]
MAX_SEED = 2**63 - 1
"""Torch's generators take no larger one."""
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=MAX_SEED, help="Of the random weights and of the run's tokens.")
]
FolderOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write the random model as a checkpoint to a new folder.")
]
ProgressOption = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Show how far long work is.  [default: on a terminal]"),
]


@app.command("build")
def build_command(
    spec: o.SpecArgument,
    overrides: o.SetOption = None,
    scale: ScaleOption = None,
    layers: LayersOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    out: FolderOption = None,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    show_progress: ProgressOption = None,
) -> None:
    """Build the PyTorch module of a spec and check it against the plan: names, shapes and counts.

    Without more, nothing is allocated, however large the model. With --scale, --layers, --device or --out it is filled
    with random weights and run: forward, loss, a few tokens, with time and memory.
    """
    import l4spec
    from l4spec.runtime.devices import checked_device
    from l4spec.spec.scale import parse_scale, scale_spec

    wanted = l4spec.load(spec, overrides or ())
    if scale is not None or layers is not None:
        wanted = scale_spec(wanted, *([] if scale is None else [parse_scale(scale)]), num_layers=layers)
    place = checked_device(device or ("meta" if (scale, layers, out) == (None, None, None) else "cpu"))
    if out is not None:
        _require_new_folder(out, place)
    if out is not None:
        from l4spec.runtime.checkpoints.save import require_new_folder

        require_new_folder(out)  # before the model is built and run
    built, model = _built(wanted, place, dtype.value if dtype else None, seed, show_progress)
    if out is not None:
        from l4spec.runtime.checkpoints import save_checkpoint

        with progress("writing", show_progress) as report:
            saved = save_checkpoint(model, out, report=report)
        complain(f"wrote {saved.num_tensors} tensors to {out} in the layout {saved.layout}")
    show(_text(built, format))
    if not built.agrees:
        raise typer.Exit(CLAIM_FAILED)


def _require_new_folder(out: Path, device: str) -> None:
    """Said before minutes of work whose result could not be written."""
    if device == "meta":
        raise UserError([Problem("needs weights, which a model on meta has not", path="--out")])
    from l4spec.runtime.checkpoints.save import require_new_folder

    require_new_folder(out)


def _built(
    spec: "ModelSpec", device: str, dtype: str | None, seed: int, show_progress: bool | None
) -> tuple["Built", "Model"]:
    import l4spec
    from l4spec.report.built import Built, planned_parts
    from l4spec.runtime.contents import contents_of

    graph, chosen = l4spec.compile(spec), dtype or spec.text.dtype
    if device == "meta":
        model = l4spec.build(graph, device, chosen)
        return Built(graph.name, contents_of(model), planned_parts(graph)), model
    from l4spec.runtime.initialize import initialize
    from l4spec.runtime.memory_check import require_memory
    from l4spec.runtime.trial import run_trial, trial_bytes

    require_memory(spec, graph, device, chosen, trial_bytes(graph))
    start = time.perf_counter()
    model = l4spec.build(graph, device, chosen, seed=None)
    with progress("filling with random weights", show_progress) as report:
        initialize(model, graph, seed, report=report)
    seconds = time.perf_counter() - start
    trial = run_trial(model, seed)
    return Built(graph.name, contents_of(model), planned_parts(graph), device, chosen, seconds, trial), model


def _text(built: "Built", style: o.Format) -> str:
    from l4spec.report.built import built_json, built_page
    from l4spec.report.page import to_markdown, to_text

    writers: dict[o.Format, Any] = {o.Format.TABLE: to_text, o.Format.MARKDOWN: to_markdown}
    text: str = built_json(built) if style is o.Format.JSON else writers[style](built_page(built))
    return text
