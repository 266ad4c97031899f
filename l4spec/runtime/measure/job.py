"""The job of `l4spec measure --tp …`, checked before any process starts. Imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from l4spec.errors import Problem
from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.parallel.run.task import Task
from l4spec.sharding.sequence import short_reason

_COPIES_TO_TRAIN = 2
"""Weights and gradients."""
TRAINS_NOT = "gradients do not travel between context-parallel ranks yet"


@dataclass(frozen=True)
class MeasureJob(Task):
    """Prompts of `prefill` tokens, `batch` over all ranks, then `decode` steps; with `train` a training step too."""

    prefill: int = 256
    decode: int = 8
    batch: int = 1
    train: bool = False
    cache_lengths: tuple[int, ...] = ()
    progress: bool = False

    is_safe: ClassVar[str] = "nothing was written"
    worker: ClassVar[str] = "l4spec.runtime.measure.rank:measure_on_rank"

    @property
    def copies(self) -> int:
        """See `Task`."""
        return _COPIES_TO_TRAIN if self.train else 1

    @property
    def sequences(self) -> int:
        """Sequences of one rank."""
        return self.batch // (self.layout.dp * self.layout.ep)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of caches that sequences under this layout may have."""
        return tuple(n for n in self.cache_lengths if short_reason(self.graph, self.layout.cp, n) is None)

    @property
    def decodes(self) -> bool:
        """True if there are decode steps; a divided prefill has none."""
        return self.decode > 0 and self.layout.cp == 1 and self.graph.can_cache

    def shared(self) -> dict[str, Any]:
        """See `Task`; the launcher gives the same to all."""
        return {"SPEC": self.model_digest, "degrees": str(self.layout)}

    def problems(self) -> Iterator[Problem]:
        """See `Task`."""
        yield from self.undivided(self.batch)
        yield from unplaced(self.graph, self.prefill + (self.decode if self.decodes else 0), "--prefill")
        if reason := short_reason(self.graph, self.layout.cp, self.prefill):
            yield Problem(f"{self.layout}: {reason}", "--prefill")
        if self.train and self.layout.cp > 1:
            yield Problem(f"{self.layout}: {TRAINS_NOT}", "--train", hint="leave it, or --cp")

    def clean_up(self) -> None:
        """Nothing is left behind."""


def unplaced(graph: LayerGraph, num_tokens: int, option: str) -> Iterator[Problem]:
    """Problem of a sequence that is longer than the learned positions."""
    learned = graph.model.text.position
    if learned is not None and num_tokens > learned.num_positions:
        yield Problem(f"{num_tokens} tokens are more than the {learned.num_positions} learned positions", path=option)
