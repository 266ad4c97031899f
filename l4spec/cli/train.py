"""`l4spec train`: a recipe run, small or whole, on this machine or under torchrun."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.build import DeviceOption, DtypeOption, LayersOption, ScaleOption
from l4spec.cli.output import check_drawing, complain, page_in, show, write_file
from l4spec.cli.run import (
    CheckpointingOption,
    Recomputed,
    SequenceParallelOption,
    Switch,
    TimeoutOption,
    layout_of,
    prepare_ranks,
    run_device,
)
from l4spec.cli.training_display import training_display
from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from l4spec.layers.common.checkpointing import Checkpointing
    from l4spec.report.training import RecipeRuns
    from l4spec.training.recipe.job import RecipeJob
    from l4spec.training.recipe.metrics import PhaseResult

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A path or a shipped name, as recipes/collapse.", show_default=False)
]
VariantOption = Annotated[
    str | None, typer.Option("--variant", metavar="NAME", help="Train only this variant.  [default: all]")
]
RepeatsOption = Annotated[
    int,
    typer.Option("--repeats", metavar="N", min=1, max=100, help="Number of seeds, one run each, starting with --seed."),
]
FirstSeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="The first seed.  [default: the recipe's]")
]
SaveEveryOption = Annotated[
    int | None,
    typer.Option("--save-every", metavar="N", min=1, help="With --out: save a checkpoint every N steps, too."),
]
FolderOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write metrics.jsonl and checkpoints to a new folder.")
]
ContinueOption = Annotated[
    bool,
    typer.Option("--resume", help="Resume from the last step in --out, with the same losses as an uninterrupted run."),
]
StartOption = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="DIR", help="Start from a checkpoint: a step's folder, or Hugging Face's layout."
    ),
]
TensorboardOption = Annotated[
    bool, typer.Option("--tensorboard", help="Write metrics to OUT/tensorboard, too, as event files.")
]
TeacherCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--teacher-cache", metavar="DIR", help="Keep teachers' logits here, for students that see the same tokens."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", metavar="N", min=1, max=1024, help="Threads of a rank.  [default: 1 for streams of up to 512]"
    ),
]
LengthsSvgOption = Annotated[
    Path | None,
    typer.Option("--svg", metavar="FILE", parser=o.file_to_write, help="Plot correct answers by length of the text."),
]
RecomputeOption = Annotated[bool, typer.Option("--recompute", help="The same as --checkpointing full.")]


@app.command("train")
def train_command(
    recipe: RecipeArgument,
    overrides: o.RecipeSetOption = None,
    variant: VariantOption = None,
    scale: ScaleOption = None,
    layers: LayersOption = None,
    repeats: RepeatsOption = 1,
    seed: FirstSeedOption = None,
    tp: Annotated[int, typer.Option("--tp", min=1, metavar="N", help="Tensor-parallel degree.")] = 1,
    ep: Annotated[int, typer.Option("--ep", min=1, metavar="N", help="Expert-parallel degree.")] = 1,
    pp: Annotated[int, typer.Option("--pp", min=1, metavar="N", help="Pipeline stages.")] = 1,
    dp: Annotated[
        int | None, typer.Option("--dp", min=1, metavar="N", help="Data-parallel degree.  [default: the ranks left]")
    ] = None,
    weights: StartOption = None,
    teacher_cache: TeacherCacheOption = None,
    tensorboard: TensorboardOption = False,
    out: FolderOption = None,
    resume: ContinueOption = False,
    save_every: SaveEveryOption = None,
    threads: ThreadsOption = None,
    recompute: RecomputeOption = False,
    checkpointing: CheckpointingOption = None,
    sequence_parallel: SequenceParallelOption = Switch.OFF,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    timeout: TimeoutOption = 60.0,
    format: o.FormatOption = o.Format.TABLE,  # noqa: A002 - the option's name
    svg: LengthsSvgOption = None,
    force: o.ForceOption = False,
) -> None:
    """Train a recipe: all phases of every variant, in one process or on as many ranks as the degrees need.

    A full-size recipe can be run in miniature with --scale tiny, on synthetic text. Each step is a line of
    metrics.jsonl in --out; --resume continues a run that was killed. A non-finite loss ends the run and names step
    and layer.
    """
    from l4spec.training.recipe.job import RecipeJob

    environment = prepare_ranks()
    job = RecipeJob(
        recipe,
        layout_of(tp, ep, pp, dp, None, environment),
        tuple(overrides or ()),
        scale,
        layers,
        run_device(device),
        dtype.value if dtype else None,
        0 if seed is None else seed,
        variant,
        out,
        save_every,
        resume,
        threads,
        _checkpointing(checkpointing, recompute=recompute),
        weights,
        teacher_cache,
        tensorboard,
        sequence_parallel is Switch.ON,
        timeout=timeout,
    )
    if seed is None:
        job = replace(job, seed=job.loaded.recipe.seed)
    if svg is not None:
        _can_draw(job, svg, force=force)
    if environment is not None:
        from l4spec.runtime.parallel.run.rank import run_rank

        run_rank(job)
    runs = _report(job, repeats, format)
    if svg is not None:
        from l4spec.report.length_page import length_svg

        write_file(svg, length_svg(runs.name, runs.runs), force=force)
        complain(f"wrote {svg}")


def _checkpointing(kind: Recomputed | None, *, recompute: bool) -> "Checkpointing":
    """Checkpointing of activations. Raises UserError if two options contradict each other."""
    if recompute and kind not in (None, Recomputed.FULL):
        raise UserError([Problem(f"is --checkpointing full, beside {kind}", "--recompute", hint="leave it out")])
    if recompute:
        return "full"
    return kind.value if kind else "none"


def _can_draw(job: "RecipeJob", svg: Path, *, force: bool) -> None:
    """Raise UserError, before anything is trained, where no picture could be drawn or written after it."""
    if job.loaded.recipe.lengths is None:
        hint = "lengths: {source: NAME, tokens: [64, 128]} asks for needles"
        raise UserError([Problem(f"{job.loaded.recipe.name} asks at no lengths", "--svg", hint=hint)])
    check_drawing(svg, force=force)


def _report(job: "RecipeJob", repeats: int, style: o.Format) -> "RecipeRuns":
    """Run every variant and seed, and show their results."""
    from l4spec.report.training import RecipeRuns, training_page

    recipe = job.loaded.recipe
    variants: list[str | None] = [job.variant] if job.variant or not recipe.variants else list(recipe.variants)
    asked = [(variant, job.seed + number) for number in range(repeats) for variant in variants]
    jobs = [_one(job, variant, seed, len(asked) > 1) for variant, seed in asked]
    for one in jobs:
        one.check()
    runs = {(one.variant, one.seed): _run(one, is_alone=len(jobs) == 1, style=style) for one in jobs}
    described = {name: one.description for name, one in recipe.variants.items() if name in variants}
    together = RecipeRuns(recipe.name, runs, described)
    if style is o.Format.JSON:
        rows = [{"variant": v, "seed": s, "phases": [asdict(p) for p in results]} for (v, s), results in runs.items()]
        show(json.dumps({"recipe": recipe.name, "runs": rows}, indent=2))
    else:
        show(page_in(training_page(together), style))
    return together


def _one(job: "RecipeJob", variant: str | None, seed: int, is_one_of_many: bool) -> "RecipeJob":
    out = job.out
    if out is not None and is_one_of_many:
        out = out / (variant or "recipe").replace(" ", "-") / f"seed-{seed}"
    return replace(job, variant=variant, seed=seed, out=out)


class _Kept:
    """Stands for the ranks' store where there is one process."""

    def __init__(self) -> None:
        self.results: dict[str, str] = {}

    def set(self, key: str, value: str, /) -> None:
        """Keep it."""
        self.results[key] = value


def _run(job: "RecipeJob", *, is_alone: bool, style: o.Format) -> "list[PhaseResult]":
    from l4spec.runtime.parallel.run.memory_check import require_room
    from l4spec.training.recipe.worker import RESULT, results_of, work

    def named(line: str) -> str:
        return line if is_alone else f"{job.variant or job.loaded.recipe.name}, seed {job.seed}: {line}"

    def say(line: str) -> None:
        (complain if style is o.Format.JSON else show)(named(line))

    require_room(job)
    kept = _Kept()
    if job.layout.num_devices == 1:
        if style is o.Format.JSON:
            work(job, say, kept)
        else:
            with training_display(say, job.phases, named) as (log, progress):
                work(job, log, kept, progress)
        return results_of([kept.results[RESULT]])
    from l4spec.runtime.parallel.run.launch import launch

    def read(store: Any) -> None:
        kept.set(RESULT, store.get(RESULT).decode())

    code = launch(job, complain, read=read)
    if code:
        raise typer.Exit(code)
    if RESULT not in kept.results:
        raise UserError([Problem("the ranks ended without a result")])
    return results_of([kept.results[RESULT]])
