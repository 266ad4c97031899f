"""The job of `l4spec run`, checked before any process starts. Imports no torch."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from l4spec.errors import Problem, os_reason
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.runtime.parallel.run.task import Task
from l4spec.training.step_folders import STEP

_COPIES_TO_TRAIN = 4
"""Weights, gradients and AdamW's two moments, all in the weights' format and divided among data ranks alike."""
PROMPT_TOKENS = 8
_PROBE_BYTES = 1 << 16
MOST_SEQUENCES = 1 << 20
MOST_TOKENS = 1 << 31


@dataclass(frozen=True)
class Job(Task):
    """One run. Degrees are in `layout`; `steps` are counted from the first run, `generate` are tokens per sequence."""

    batch: int = 4
    context: int = 64
    steps: int = 0
    learning_rate: float = 1e-3
    generate: int = 0
    ids: tuple[int, ...] | None = None
    weights: Path | None = None
    checkpoint: Path | None = None
    save_every: int | None = None
    resume: bool = False
    out: Path | None = None
    verify: bool = True
    checkpointing: Checkpointing = "none"
    sequence_parallel: bool = False
    log_every: int = 1

    is_safe: ClassVar[str] = "the last checkpoint is whole"
    worker: ClassVar[str] = "l4spec.training.run.worker:work"

    @property
    def copies(self) -> int:
        """See `Task`."""
        return _COPIES_TO_TRAIN if self.steps else 1

    def continued(self) -> dict[str, Any]:
        """Settings that must be equal to continue from a checkpoint, by the names of options."""
        return {
            "SPEC": f"{self.graph.name} ({self.model_digest})",
            "--dtype": self.number_format,
            "--seed": self.seed,
            "--batch": self.batch,
            "--context": self.context,
            "--learning-rate": self.learning_rate,
        }

    def shared(self) -> dict[str, Any]:
        """Settings that must be equal on every rank, by the names of options."""
        return {
            **self.continued(),
            "degrees": str(self.layout),
            "--device": self.device,
            "--steps": self.steps,
            "--checkpointing": self.checkpointing,
            "--sequence-parallel": self.sequence_parallel,
            "--generate": self.generate,
            "--ids": None if self.ids is None else list(self.ids),
            "--weights": _text(self.weights),
            "--checkpoint": _text(self.checkpoint),
            "--save-every": self.save_every,
            "--resume": self.resume,
            "--out": _text(self.out),
            "--verify": self.verify,
        }

    def clean_up(self) -> None:
        """Remove checkpoints that the run began and did not finish."""
        from l4spec.runtime.checkpoints.write import remove_unfinished

        if self.checkpoint is not None:
            remove_unfinished(self.checkpoint, f"{STEP}*")

    def problems(self) -> Iterator[Problem]:
        """See `Task`."""
        width = self.model_spec.text
        yield from self._numbers_out_of_bounds()
        yield from self.undivided(self.batch)
        longest = max(self.context if self.steps else 0, self._num_generated())
        if longest > width.max_seq_len:
            yield Problem(f"{longest:,} tokens, the model is made for {width.max_seq_len:,}", "--context")
        if self.ids is not None and not all(token < width.vocab_size for token in self.ids):
            yield Problem(f"expected token ids below {width.vocab_size:,}", "--ids")
        yield from self._without_steps()
        if self.sequence_parallel:
            yield from self.undivided_tokens(self.context, "--context")
        if self.ids is not None and not self.generate:
            yield Problem("needs --generate", "--ids")
        for option in ("save_every", "resume"):
            if getattr(self, option) and self.checkpoint is None:
                yield Problem("needs --checkpoint", "--" + option.replace("_", "-"))
        if self.checkpoint is not None and (reason := unwritable(self.checkpoint)):
            yield Problem(f"cannot write {str(self.checkpoint)[:200]!r}: {reason}", "--checkpoint")
        if self.weights is not None and not self.weights.is_dir():
            yield Problem(f"{str(self.weights)[:200]!r} is no checkpoint folder", "--weights")
        if self.out is not None and self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            yield Problem(f"{self.out} exists and is not empty", "--out", hint="name a new folder")
        if not (self.steps or self.generate or self.out):
            yield Problem("nothing to do", hint="--steps trains, --generate generates tokens, --out writes the weights")

    def _without_steps(self) -> Iterator[Problem]:
        given = {"--checkpointing": self.checkpointing != "none", "--sequence-parallel": self.sequence_parallel}
        for option in (name for name, is_given in given.items() if is_given and not self.steps):
            yield Problem("needs --steps", option)

    def _numbers_out_of_bounds(self) -> Iterator[Problem]:
        if not 0 <= self.learning_rate < float("inf"):
            yield Problem(f"expected a number of at least 0, found {self.learning_rate:g}", "--learning-rate")
        if self.batch > MOST_SEQUENCES or self.batch * self.context > MOST_TOKENS:
            message = f"expected up to {MOST_SEQUENCES:,} sequences and {MOST_TOKENS:,} tokens of a step"
            yield Problem(f"{message}, found {self.batch:,} of {self.context:,}", "--batch")

    def _num_generated(self) -> int:
        prompt = PROMPT_TOKENS if self.ids is None else len(self.ids)
        return prompt + self.generate if self.generate else 0


def unwritable(folder: Path) -> str:
    """Error message if no file can be written to a folder, which is created if missing; empty if one can.

    Checked before hours of steps whose checkpoint could not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe.") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:
        return os_reason(error)
    return ""


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
