"""The log of a run, one JSON object per line for steps, evaluations and warnings; and the final table's results."""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l4spec.runtime.parallel.checkpoints.rank_coordination import is_first
from l4spec.training.loop import StepMetrics
from l4spec.training.recipe.evaluation import DepthScore, Evaluation
from l4spec.training.recipe.event_files import EventFiles
from l4spec.training.recipe.lengths import LengthScore
from l4spec.training.routing import LayerLoad

METRICS = "metrics.jsonl"
LAST = 20
"""Steps that final losses and loads are means of."""


@dataclass(frozen=True, slots=True)
class RoutingSummary:
    """Of the layer where experts are used least evenly."""

    effective_experts: float
    max_over_mean: float
    num_experts: int

    @classmethod
    def worst_of(cls, loads: Mapping[str, LayerLoad]) -> "RoutingSummary | None":
        """The worst layer's effective experts, and the worst layer's maximum over mean; None without mixtures."""
        if not loads:
            return None
        worst = min(loads.values(), key=lambda load: load.effective_experts)
        return cls(worst.effective_experts, max(load.max_over_mean for load in loads.values()), len(worst.counts))


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """Results of a phase. `routing` is of its last training steps, `evaluated` of held-out text."""

    name: str
    kind: str
    steps: int
    tokens: int
    seconds: float
    loss: float
    held_out_loss: float
    bits_per_byte: float
    routing: RoutingSummary | None = None
    evaluated: RoutingSummary | None = None
    right: float | None = None
    notes: Mapping[str, float] = field(default_factory=dict)
    longest: int = 0
    """Tokens of the longest context trained on so far."""
    lengths: Sequence[LengthScore] = ()
    depths: Sequence[DepthScore] = ()
    """Held-out scores of modules of multi-token prediction, where the phase trains them."""


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Progress of a phase, for progress callbacks."""

    phase: str
    step: int
    loss: float
    tokens_per_second: float


class MetricsFile:
    """Writes rows on rank 0, with `events` for TensorBoard too.

    A run that continues drops the rows of steps that it makes again.
    """

    def __init__(self, folder: Path | None, first_step: int, *, events: bool = False) -> None:
        self.path = None if folder is None or not is_first() else folder / METRICS
        self.events = EventFiles(self.path.parent, first_step) if events and self.path is not None else None
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= first_step]
            self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(self, step: int, **row: Any) -> None:
        """One row of a step, counted over all phases."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **row}) + "\n")
        if self.events is not None:
            self.events.write(step, row)

    def close(self) -> None:
        """Flush and close."""
        if self.events is not None:
            self.events.close()

    def step(self, step: int, phase: str, done: StepMetrics) -> None:
        """The row of an optimizer step."""
        self.write(
            step,
            phase=phase,
            loss=done.loss,
            learning_rate=done.learning_rate,
            gradient_norm=done.gradient_norm,
            tokens=done.tokens,
            seconds=round(done.seconds, 6),
            **done.extra,
            **({} if done.fp8 is None else {"fp8": done.fp8.as_json()}),
            routing={node: load.as_json() for node, load in done.routing.items()},
        )

    def evaluation(self, step: int, phase: str, result: Evaluation, right: float | None) -> None:
        """The row of an evaluation."""
        self.write(
            step,
            phase=phase,
            event="evaluation",
            held_out_loss=result.loss,
            bits_per_byte=result.bits_per_byte,
            right=right,
            **result.by_depth,
            routing={node: load.as_json() for node, load in result.routing.items()},
        )

    def lengths(self, step: int, phase: str, scores: Sequence[LengthScore]) -> None:
        """The row of right answers by length."""
        self.write(step, phase=phase, event="lengths", right={score.tokens: score.right for score in scores})


def _lines(path: Path) -> Iterator[str]:
    """Whole lines: a run that was killed may have left half of one."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.split("\n")[:-1]:
        if line.startswith("{") and line.endswith("}"):
            yield line


class Recent:
    """Losses and loads of the last steps."""

    def __init__(self, size: int = LAST) -> None:
        self.losses: deque[float] = deque(maxlen=size)
        self.loads: deque[Mapping[str, LayerLoad]] = deque(maxlen=size)
        self.extras: deque[Mapping[str, float]] = deque(maxlen=size)

    def add(self, done: StepMetrics) -> None:
        """One more step."""
        self.losses.append(done.loss)
        self.loads.append(done.routing)
        self.extras.append(done.extra)

    @property
    def loss(self) -> float:
        """The mean loss."""
        return sum(self.losses) / len(self.losses) if self.losses else float("nan")

    def summed_loads(self) -> dict[str, LayerLoad]:
        """Choices of the last steps together."""
        total: dict[str, LayerLoad] = {}
        for loads in self.loads:
            for node, load in loads.items():
                before = total.get(node, LayerLoad((0.0,) * len(load.counts)))
                counts = tuple(a + b for a, b in zip(before.counts, load.counts, strict=True))
                total[node] = LayerLoad(counts, before.dropped + load.dropped)
        return total

    def means(self) -> dict[str, float]:
        """Means of the metrics of batches."""
        names = dict.fromkeys(name for extra in self.extras for name in extra)
        return {name: sum(extra[name] for extra in self.extras) / len(self.extras) for name in names}
