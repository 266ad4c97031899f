"""`l4spec build`: a spec as a PyTorch module, checked against the plan, and a miniature of it run."""

import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import CLAIM_FAILED, app
from l4spec.cli.output import cleared_up, complain, write
from l4spec.cli.progress import progress_bar
from l4spec.errors import Problem, UserError
from l4spec.units import gib

if TYPE_CHECKING:
    from l4spec.quantization.scheme import Quantization
    from l4spec.report.built import Built
    from l4spec.runtime.checkpoints import SavedCheckpoint
    from l4spec.runtime.model import Model
    from l4spec.spec.model import ModelSpec


class Dtype(StrEnum):
    """Number formats of weights."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


ScaleOption = Annotated[
    str | None,
    typer.Option("--scale", metavar="SCALE", help="Run a miniature: tiny, or a ratio of the widths such as 1/64."),
]
LayersOption = Annotated[
    int | None, typer.Option("--layers", metavar="N", help="Run the first N layers of the language model.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="Run on cpu, cuda or cuda:N; meta allocates nothing."),
]
DtypeOption = Annotated[Dtype | None, typer.Option("--dtype", help="Weights in this format.  [default: the spec's]")]
PackingOption = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        "-q",
        metavar="SCHEME",
        help="Pack the weights: `l4spec ls quantization`, or NAME-g32 for other groups.  [default: none]",
    ),
]
_LARGE_BYTES = 1 << 30
"""Size of weights above which a message on stderr announces the initialization, which takes long."""
MAX_SEED = 2**63 - 1
"""Torch's generators take no larger one."""
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of the random weights and of the run's tokens.")
]
FolderOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write the random model as a checkpoint to a new folder.")
]
ParentOption = Annotated[
    Path | None, typer.Option("--from", metavar="DIR", help="A dense checkpoint whose weights --upcycle copies.")
]
UpcycleOption = Annotated[
    bool,
    typer.Option(
        "--upcycle", help="Make every expert a copy of the dense layer at its position; logits stay the same."
    ),
]
ProgressOption = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="Show the progress of long work.  [default: on a terminal]"),
]


@app.command("build")
def build_command(
    spec: o.SpecArgument,
    overrides: o.SetOption = None,
    scale: ScaleOption = None,
    layers: LayersOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quantization: PackingOption = None,
    seed: SeedOption = 0,
    out: FolderOption = None,
    parent: ParentOption = None,
    upcycle: UpcycleOption = False,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    show_progress: ProgressOption = None,
) -> None:
    """Build the PyTorch module of a spec and check it against the plan: names, shapes and counts.

    By default nothing is allocated, however large the model. With --scale, --layers, --device or --out it is run with
    random weights: forward, loss, a few tokens, with time and memory. With --quantization the weights are packed by
    the scheme and their bytes compared with the plan; with --scale its groups shrink like the widths.
    With --from and --upcycle a mixture of experts starts from the weights of a dense checkpoint.
    """
    import l4spec
    from l4spec.runtime.devices import checked_device
    from l4spec.spec.scale import parse_scale, scale_spec

    model_spec = l4spec.load(spec, overrides or ())
    _require_upcycled_alone(parent, upcycle, scale, layers, device, quantization)
    if scale is not None or layers is not None:
        model_spec = scale_spec(model_spec, *([] if scale is None else [parse_scale(scale)]), num_layers=layers)
    place = checked_device(_default_device(scale, layers, out, parent) if device is None else device)
    if out is not None:
        _require_new_folder(out, place)
    table, chosen = _formats(model_spec, quantization, dtype.value if dtype else None, is_miniature=scale is not None)
    if out is not None and table is not None:
        from l4spec.runtime.checkpoints.packed_save import require_exportable

        require_exportable(l4spec.compile(model_spec), table)
    built, model = _built(model_spec, table, place, chosen, seed, show_progress, parent)
    if out is not None:
        _write(model, out, show_progress, None if parent is not None or table is not None else seed)
    from l4spec.report.built import built_page

    write(built, lambda: built_page(built), format, None, force=False)
    if not built.agrees:
        raise typer.Exit(CLAIM_FAILED)


def _require_upcycled_alone(parent: Path | None, upcycle: bool, *others: object) -> None:
    """Require the whole model, unquantized, on the CPU if it is filled from a parent."""
    if upcycle != (parent is not None):
        raise UserError("--from names the checkpoint that --upcycle copies: give both or neither")
    if upcycle and any(other is not None for other in others):
        raise UserError("--upcycle fills the whole model on the CPU: leave out --scale, --layers, --device and -q")


def _default_device(*miniature_or_folder: object) -> str:
    """Default device: `meta`, or `cpu` if something is to be run or written."""
    return "cpu" if any(given is not None for given in miniature_or_folder) else "meta"


def _formats(
    spec: "ModelSpec", quantization: str | None, dtype: str | None, *, is_miniature: bool
) -> tuple["Quantization | None", str]:
    """The scheme that packs the weights, if any, and the number format of the rest."""
    import l4spec
    from l4spec.verification.run_measure import number_format_of, scheme_for

    graph = l4spec.compile(spec)
    table = None if quantization is None else scheme_for(graph, quantization, is_miniature=is_miniature)
    return table, number_format_of(graph, dtype, table)


def _write(model: "Model", out: Path, show_progress: bool | None, module_seed: int | None) -> None:
    """Write the model and, with a seed, its declared modules of multi-token prediction with random weights."""
    from l4spec.runtime.checkpoints import save_checkpoint
    from l4spec.runtime.mtp import build_mtp

    is_declared = model.graph.model.text.mtp is not None
    modules = build_mtp(model, seed=module_seed) if is_declared and module_seed is not None else ()
    with cleared_up(), progress_bar("writing", show_progress) as progress:
        saved = save_checkpoint(model, out, modules=modules, progress=progress)
    if is_declared and not modules:
        complain("modules of multi-token prediction are not written: text.mtp is left out of the checkpoint")
    complain(_written(saved))


def _written(saved: "SavedCheckpoint") -> str:
    text = f"wrote {saved.num_tensors} tensors to {saved.directory} in the layout {saved.layout}"
    if not saved.shape_bytes:
        return text
    return f"{text}: {saved.num_bytes - saved.shape_bytes:,} B of weights, {saved.shape_bytes:,} B of their shapes"


def _require_new_folder(out: Path, device: str) -> None:
    """Said before minutes of work whose result could not be written."""
    if device == "meta":
        raise UserError([Problem("needs weights, which a model on meta has not", path="--out")])
    from l4spec.runtime.checkpoints.write import require_new_folder

    require_new_folder(out)


def _built(
    spec: "ModelSpec",
    table: "Quantization | None",
    device: str,
    dtype: str,
    seed: int,
    show_progress: bool | None,
    parent: Path | None,
) -> tuple["Built", "Model"]:
    import l4spec
    from l4spec.report.built import Built, planned_bytes, planned_parts
    from l4spec.runtime.module_inventory import contents_of

    graph, start = l4spec.compile(spec), time.perf_counter()
    if parent is None:
        model = _filled(spec, table, device, dtype, seed, show_progress)
    else:
        from l4spec.runtime.upcycle import upcycle

        with progress_bar("reading the parent", show_progress) as progress:
            model = upcycle(graph, parent, dtype, seed=seed, progress=progress)
    seconds = time.perf_counter() - start
    built = Built(
        graph.name,
        contents_of(model),
        planned_parts(graph),
        planned_bytes(graph, table, dtype),
        table.name if table else None,
    )
    if device == "meta":
        return built, model
    from l4spec.runtime.smoke_run import run_trial

    with progress_bar("running", show_progress) as progress:
        trial = run_trial(model, seed, progress)
    return replace(built, device=device, dtype=dtype, build_seconds=seconds, trial=trial), model


def _filled(
    spec: "ModelSpec", table: "Quantization | None", device: str, dtype: str, seed: int, show_progress: bool | None
) -> "Model":
    """The model with random weights, packed layer by layer where a scheme is given; empty on meta."""
    import l4spec
    from l4spec.runtime.build import build_quantized
    from l4spec.runtime.initialize import initialize
    from l4spec.runtime.memory_check import ITEM_BYTES, free_bytes, require_memory, weight_bytes
    from l4spec.runtime.smoke_run import trial_bytes
    from planners.counts.mtp import count_mtp

    graph = l4spec.compile(spec)
    beside = trial_bytes(graph) + (ITEM_BYTES[dtype] * modules.own if (modules := count_mtp(graph)) else 0)
    require_memory(spec, graph, device, dtype, beside, table)
    if device != "meta" and (size := weight_bytes(graph, dtype, table)) >= _LARGE_BYTES:
        free = free_bytes(device)
        room = "" if free is None else f" of {gib(free)} that are free"
        complain(f"filling {gib(size)} of weights{room} on {device} with random numbers, then running them")
    with progress_bar("filling with random weights", False if device == "meta" else show_progress) as progress:
        if table is not None:
            return build_quantized(graph, table, device, seed=seed, progress=progress)
        model = l4spec.build(graph, device, dtype, seed=None)
        if device != "meta":
            initialize(model, graph, seed, progress=progress)
    return model
