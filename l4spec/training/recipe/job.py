"""The job of `l4spec train`, checked before any process starts. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from l4spec.errors import Problem, SpecError
from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.graph.trainable import selector_problems
from l4spec.graph.with_modules import with_modules
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.quantization.matmuls import matmul_problems
from l4spec.runtime.parallel.run.task import NARROW, Task
from l4spec.spec.model import ModelSpec
from l4spec.spec.recipe import Phase
from l4spec.spec.recipe.load import LoadedRecipe, load_recipe, variant_of
from l4spec.spec.resolve import resolve
from l4spec.training.recipe.event_files import EXTRA, is_tensorboard_there
from l4spec.training.run.job import unwritable
from l4spec.training.step_folders import STEP


@dataclass(frozen=True)
class RecipeJob(Task):
    """One run of a recipe: `spec` names the recipe, `overrides` change it; degrees are in `layout`."""

    variant: str | None = None
    out: Path | None = None
    save_every: int | None = None
    resume: bool = False
    threads: int | None = None
    checkpointing: Checkpointing = "none"
    weights: Path | None = None
    teacher_cache: Path | None = None
    tensorboard: bool = False
    sequence_parallel: bool = False

    worker: ClassVar[str] = "l4spec.training.recipe.worker:work"
    is_safe: ClassVar[str] = "the last checkpoint is whole"

    @cached_property
    def loaded(self) -> LoadedRecipe:
        """The recipe."""
        return load_recipe(self.spec, self.overrides, self.variant)

    @cached_property
    def model_spec(self) -> ModelSpec:
        """The spec that is trained, scaled."""
        return self.loaded.model(variant_of(self.loaded.recipe, self.variant), self.scale, self.layers)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases, scaled."""
        return self.loaded.phases(self.scale, self.model_spec)

    @cached_property
    def graph(self) -> LayerGraph:
        """The trained graph, with the modules of multi-token prediction if a phase trains them."""
        graph = build_graph(resolve(self.model_spec))
        return with_modules(graph) if self.trains_modules else graph

    @property
    def trains_modules(self) -> bool:
        """True if a phase trains modules of multi-token prediction."""
        return any(phase.modules is not None for phase in self.phases)

    @property
    def copies(self) -> int:
        """See `Task`: weights, gradients, two moments, and the model that entered a phase."""
        return 5 if any(phase.kind in ("rl", "dpo", "sft") for phase in self.phases) else 4

    @property
    def num_threads(self) -> int | None:
        """Threads of a rank: as given, one for a narrow model, else as torch chooses (None)."""
        if self.threads is not None:
            return self.threads
        return 1 if self.model_spec.text.hidden_size <= NARROW else None

    def continued(self) -> dict[str, Any]:
        """Settings that must be equal to continue from a checkpoint, by the names of options."""
        return {
            "RECIPE": f"{self.loaded.recipe.name} ({self.model_digest})",
            "phases": [phase.model_dump_json() for phase in self.phases],
            "data": self.loaded.recipe.data.model_dump_json(),
            "--dtype": self.number_format,
            "--seed": self.seed,
            "--weights": None if self.weights is None else str(self.weights.absolute()),
        }

    def shared(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            **self.continued(),
            "degrees": str(self.layout),
            "--device": self.device,
            "--variant": self.variant,
            "--out": None if self.out is None else str(self.out),
            "--checkpointing": self.checkpointing,
            "--teacher-cache": None if self.teacher_cache is None else str(self.teacher_cache),
            "--sequence-parallel": self.sequence_parallel,
            "--save-every": self.save_every,
            "--resume": self.resume,
        }

    def problems(self) -> Iterator[Problem]:
        """See `Task`; raises SpecError for errors in the recipe itself."""
        self.loaded.check(self.model_spec, self.scale)
        if unknown := list(selector_problems(self.loaded, self.graph, self.phases)):
            raise SpecError(unknown)
        for phase in self.phases:
            yield from self._undivided_in(phase)
            yield from self._untrained_modules(phase)
            if phase.fp8 is not None:
                yield from matmul_problems(self.graph, phase.fp8.matmuls, f"phase {phase.name}: precision.matmuls")
            data = self.layout.dp * self.layout.ep * (2 if phase.kind == "dpo" else 1)
            if phase.batch % data:
                yield Problem(f"{phase.batch} sequences cannot be divided by {data}", f"phase {phase.name}: batch")
            beside = phase.kind == "rl" and phase.rollouts is not None
            if beside and (self.layout.num_devices > 1 or self.device != "cpu"):
                hint = "no degrees and --device cpu, or no rollouts"
                yield Problem("actors run beside one rank on the CPU", f"phase {phase.name}: rollouts", hint=hint)
            if self.layout.pp > 1 and phase.trainable:
                message = "a phase that freezes does not run by pipeline stages"
                yield Problem(message, f"phase {phase.name}", hint="pp 1")
            if self.layout.pp > 1 and phase.kind in ("distill", "rl", "dpo"):
                yield Problem(
                    f"a {phase.kind} phase does not run by pipeline stages", f"phase {phase.name}", hint="pp 1"
                )
        yield from self._folder_problems()

    def _folder_problems(self) -> Iterator[Problem]:
        if self.weights is not None and not self.weights.is_dir():
            yield Problem(f"{str(self.weights)[:200]!r} is no checkpoint folder", "--weights")
        if self.teacher_cache is not None:
            yield from self._unusable_cache(self.teacher_cache)
        if self.tensorboard and not is_tensorboard_there():
            yield Problem("event files need the package tensorboard", "--tensorboard", hint=EXTRA)
        for option in ("save_every", "resume", "tensorboard"):
            if getattr(self, option) and self.out is None:
                yield Problem("needs --out", "--" + option.replace("_", "-"))
        if self.out is not None and not self.resume and self.out.exists() and any(self.out.iterdir()):
            yield Problem(f"{self.out} exists and is not empty", "--out", hint="name a new folder, or add --resume")

    def _unusable_cache(self, folder: Path) -> Iterator[Problem]:
        if self.layout.num_devices > 1:
            yield Problem("one rank reads and writes it", "--teacher-cache", hint="no degrees, or no cache")
        if not any(phase.kind == "distill" for phase in self.phases):
            yield Problem("no phase has a teacher", "--teacher-cache")
        elif reason := unwritable(folder):
            yield Problem(f"cannot write {str(folder)[:200]!r}: {reason}", "--teacher-cache")

    def _untrained_modules(self, phase: Phase) -> Iterator[Problem]:
        """Problems that rule out training modules of multi-token prediction in a phase."""
        if phase.modules is None:
            return
        path, text = f"phase {phase.name}: mtp", "modules of multi-token prediction are not trained"
        if self.layout.pp > 1:
            yield Problem(f"{text} by pipeline stages", path, hint="pp 1, or leave mtp out")
        if self.sequence_parallel:
            yield Problem(f"{text} with sequence parallelism", path, hint="leave out --sequence-parallel, or mtp")
        if phase.fp8 is not None:
            yield Problem(f"{text} in fp8", path, hint="precision: bf16, or leave mtp out")

    def _undivided_in(self, phase: Phase) -> Iterator[Problem]:
        """Problems of a phase whose tokens cannot be divided among ranks of tp."""
        if not self.sequence_parallel:
            return
        yield from self.undivided_tokens(phase.context, f"phase {phase.name}: context")
        if phase.kind not in ("pretrain", "midtrain", "distill"):
            message = f"phase {phase.name} ({phase.kind}) has sequences of many lengths"
            yield Problem(message, "--sequence-parallel", hint="leave it out")

    def clean_up(self) -> None:
        """Remove checkpoints that the run began and did not finish."""
        from l4spec.runtime.checkpoints.write import remove_unfinished

        if self.out is not None:
            remove_unfinished(self.out, f"{STEP}*")
