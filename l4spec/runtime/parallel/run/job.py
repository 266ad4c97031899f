"""What `l4spec run` is asked for, and whether it can be done: checked before any process starts. Knows no torch."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from l4spec.errors import Problem, UserError
from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import illegal_reason
from l4spec.spec.document import load_document
from l4spec.spec.model import ModelSpec
from l4spec.spec.parse import parse_spec
from l4spec.spec.resolve import resolve
from l4spec.spec.scale import parse_scale, scale_spec

DEFAULT_TIMEOUT = 60.0
PROMPT_TOKENS = 8


@dataclass(frozen=True)
class Job:
    """One run. Degrees are in `layout`; `steps` are counted from the first run, `generate` are tokens a sequence."""

    spec: str
    layout: Layout
    overrides: tuple[str, ...] = ()
    scale: str | None = None
    layers: int | None = None
    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0
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
    timeout: float = DEFAULT_TIMEOUT

    @cached_property
    def model_spec(self) -> ModelSpec:
        """The spec that is run, scaled. Raises SpecError."""
        spec = parse_spec(load_document(self.spec, self.overrides))
        if self.scale is not None or self.layers is not None:
            scales = [] if self.scale is None else [parse_scale(self.scale)]
            spec = scale_spec(spec, *scales, num_layers=self.layers)
        return spec

    @cached_property
    def graph(self) -> LayerGraph:
        """Its layer graph."""
        return build_graph(resolve(self.model_spec))

    @property
    def model_digest(self) -> str:
        """Eight bytes that differ where models do."""
        return hashlib.blake2b(self.model_spec.model_dump_json().encode(), digest_size=8).hexdigest()

    @property
    def number_format(self) -> str:
        """The number format of the weights."""
        return self.dtype or self.model_spec.text.dtype

    def continued(self) -> dict[str, Any]:
        """What must be the same to go on from a checkpoint, by the names of options."""
        return {
            "SPEC": f"{self.graph.name} ({self.model_digest})",
            "--dtype": self.number_format,
            "--seed": self.seed,
            "--batch": self.batch,
            "--context": self.context,
            "--learning-rate": self.learning_rate,
        }

    def shared(self) -> dict[str, Any]:
        """What must be the same on every rank, by the names of options."""
        return {
            **self.continued(),
            "degrees": str(self.layout),
            "--device": self.device,
            "--steps": self.steps,
            "--generate": self.generate,
            "--ids": None if self.ids is None else list(self.ids),
            "--weights": _text(self.weights),
            "--checkpoint": _text(self.checkpoint),
            "--save-every": self.save_every,
            "--resume": self.resume,
            "--out": _text(self.out),
        }

    def check(self) -> None:
        """Raise UserError naming everything that cannot be done."""
        problems = list(self._problems())
        if problems:
            raise UserError(problems)

    def _problems(self) -> Iterator[Problem]:
        if reason := illegal_reason(self.graph, self.layout):
            yield Problem(f"{self.layout}: {reason}")
        data, width = self.layout.dp * self.layout.ep, self.model_spec.text
        if self.batch % data:
            yield Problem(f"{self.batch} sequences cannot be divided among {data} ranks (dp x ep)", "--batch")
        longest = max(self.context if self.steps else 0, self._num_generated())
        if longest > width.max_seq_len:
            yield Problem(f"{longest:,} tokens, the model is made for {width.max_seq_len:,}", "--context")
        if self.ids is not None and not all(token < width.vocab_size for token in self.ids):
            yield Problem(f"expected token ids below {width.vocab_size:,}", "--ids")
        if self.ids is not None and not self.generate:
            yield Problem("needs --generate", "--ids")
        for option in ("save_every", "resume"):
            if getattr(self, option) and self.checkpoint is None:
                yield Problem("needs --checkpoint", "--" + option.replace("_", "-"))
        if self.weights is not None and not self.weights.is_dir():
            yield Problem(f"{str(self.weights)[:200]!r} is no checkpoint folder", "--weights")
        if self.out is not None and self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            yield Problem(f"{self.out} exists and is not empty", "--out", hint="name a new folder")
        if not (self.steps or self.generate or self.out):
            yield Problem("nothing to do", hint="--steps trains, --generate says something, --out writes the weights")

    def _num_generated(self) -> int:
        prompt = PROMPT_TOKENS if self.ids is None else len(self.ids)
        return prompt + self.generate if self.generate else 0


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
