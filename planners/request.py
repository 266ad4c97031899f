"""What a user asks `plan` for: checked before anything is looked up, and written back as command-line options."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Any, get_args

from l4spec.errors import Problem, UserError, nearest
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from planners.device.training_state import CHECKPOINTING, OPTIMIZER_BYTES, PRECISIONS, TrainSetting
from planners.plan_types import Mode, Objective

DEFAULT_CONTEXT = 8192
DEFAULT_PREFILL_CHUNK = 8192
LARGEST = 1 << 20
"""Most sequences, tiles and devices along one axis; a larger number is a mistake."""
LONGEST_CHUNK = 1 << 40
MOST_TRAIN_TOKENS = 10**18

_AXES = ("tp", "ep", "pp", "dp", "cp")
_OPTIONS = {"num_tiles": "tiles", "train_tokens": "tokens"}


@dataclass(frozen=True, slots=True)
class Pinned:
    """Degrees that the user fixed; None where the planner may choose. Without a word `cp` is 1: it is for prefills."""

    tp: int | None = None
    ep: int | None = None
    pp: int | None = None
    dp: int | None = None
    cp: int = 1

    def allows(self, layout: Layout) -> bool:
        """Whether a layout has the fixed degrees."""
        return (
            self.tp in (None, layout.tp)
            and self.ep in (None, layout.ep)
            and self.pp in (None, layout.pp)
            and self.dp in (None, layout.dp)
            and self.cp == layout.cp
        )

    def alone(self) -> Layout:
        """The layout of the fixed degrees, 1 elsewhere."""
        return Layout(tp=self.tp or 1, ep=self.ep or 1, pp=self.pp or 1, dp=self.dp or 1, cp=self.cp)


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of `plan` as they were given, each field named like its command-line option."""

    gpus: str | None = None
    quantization: str = "bf16"
    kv_dtype: str = "bf16"
    context: int | None = None
    batch: int = 1
    tp: int | None = None
    ep: int | None = None
    pp: int | None = None
    dp: int | None = None
    cp: int | None = None
    engine: str = "ideal"
    objective: Objective = "balanced"
    mode: Mode = "serve"
    num_tiles: int = 0
    prefill_chunk: int = DEFAULT_PREFILL_CHUNK
    memory_fraction: float | None = None
    train: TrainSetting = field(default_factory=TrainSetting)
    output_tokens: int | None = None
    train_tokens: int | None = None
    usd_per_gpu_hour: float | None = None
    routing: str | None = None

    @property
    def pinned(self) -> Pinned:
        """The fixed degrees."""
        return Pinned(self.tp, self.ep, self.pp, self.dp, self.cp or 1)

    def tokens(self, graph: LayerGraph) -> int:
        """Tokens a sequence: the given context, or 8,192, or the model's shorter limit."""
        return min(DEFAULT_CONTEXT, max_seq_len(graph)) if self.context is None else self.context

    def options(self) -> str:
        """Every option that differs from its default, as the command line takes it behind `l4spec plan SPEC`."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "train"}
        known = {f.name: f.default for f in fields(self)}
        if self.mode == "train":
            told |= {f.name: getattr(self.train, f.name) for f in fields(TrainSetting)}
            known |= {f.name: f.default for f in fields(TrainSetting)}
        return " ".join(
            f"--{_OPTIONS.get(name, name).replace('_', '-')} {_quoted(str(value))}"
            for name, value in told.items()
            if value != known[name]
        )

    def check(self, graph: LayerGraph) -> None:
        """Raise UserError with everything that is out of range or of the wrong type."""
        problems = [*self._words(), *self._numbers(graph), *_training(self.train)]
        if self.mode == "train":
            problems += self._serving_only()
        if self.pinned.cp > 1:
            problems += self._prefill_only()
        if problems:
            raise UserError(problems)

    def _words(self) -> Iterator[Problem]:
        for name in ("gpus", "quantization", "kv_dtype", "engine"):
            value: object = getattr(self, name)
            if not isinstance(value, str) and not (name == "gpus" and value is None):
                yield Problem(f"expected a name, found {value!r}", path=name)
        for name, known in (("objective", get_args(Objective)), ("mode", get_args(Mode))):
            value = getattr(self, name)
            if value not in known:
                yield Problem(f"unknown {name} {value!r}", path=name, hint=nearest(str(value), known))

    def _numbers(self, graph: LayerGraph) -> Iterator[Problem]:
        for axis in _AXES:
            if (degree := getattr(self, axis)) is not None:
                yield from _whole(axis, degree, 1, LARGEST)
        yield from _whole("batch", self.batch, 1, LARGEST)
        yield from _whole("prefill_chunk", self.prefill_chunk, 1, LONGEST_CHUNK)
        yield from _whole("num_tiles", self.num_tiles, 0, LARGEST)
        if self.num_tiles and graph.model.vision is None:
            yield Problem("the model has no vision, so it takes no tiles", path="num_tiles")
        if self.context is not None:
            hint = "set a larger text.max_seq_len to plan beyond the model's own limit"
            yield from _whole("context", self.context, 1, max_seq_len(graph), hint)
        if self.output_tokens is not None:
            hint = "output tokens are part of the context"
            yield from _whole("output_tokens", self.output_tokens, 1, max(self.tokens(graph) - 1, 1), hint)
        if self.train_tokens is not None:
            yield from _whole("train_tokens", self.train_tokens, 1, MOST_TRAIN_TOKENS)
        if self.usd_per_gpu_hour is not None and not _is_price(self.usd_per_gpu_hour):
            yield Problem(f"expected a price above 0, found {self.usd_per_gpu_hour!r}", path="usd_per_gpu_hour")
        if self.memory_fraction is not None and not _is_share(self.memory_fraction):
            message = f"expected a number above 0 and at most 1, found {self.memory_fraction!r}"
            yield Problem(message, path="memory_fraction")

    def _serving_only(self) -> Iterator[Problem]:
        if self.quantization != "bf16":
            hint = "leave it out; --precision fp8 computes in fp8"
            yield Problem("training keeps bf16 weights", path="quantization", hint=hint)
        if self.engine != "ideal":
            yield Problem("training keeps no cache, so no engine plays a part", path="engine", hint="leave it out")
        if self.output_tokens is not None:
            yield Problem("training has no output tokens", path="output_tokens", hint="leave it out")

    def _prefill_only(self) -> Iterator[Problem]:
        if self.mode == "train":
            yield Problem("training with context parallelism is not there yet", path="cp", hint="leave it out")
        if self.output_tokens is not None:
            message = "context parallelism is for prefills, after which decoding goes on by a layout without it"
            yield Problem(message, path="cp", hint="plan the decoding by itself, without cp")


def max_seq_len(graph: LayerGraph) -> int:
    """The longest sequence that the model was made for, in tokens."""
    return graph.model.text.stack.width.max_seq_len


def _whole(name: str, value: Any, low: int, high: int, hint: str = "") -> Iterator[Problem]:
    if isinstance(value, bool) or not isinstance(value, int):
        yield Problem(f"expected a whole number, found {value!r}", path=name)
    elif not low <= value <= high:
        yield Problem(f"expected {low:,} to {high:,}, found {value:,}", path=name, hint=hint if value > high else "")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and 0 < value <= 1


def _is_price(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and 0 < value <= 1e6


def _training(train: TrainSetting) -> Iterator[Problem]:
    for name, value, known in (
        ("optimizer", train.optimizer, tuple(OPTIMIZER_BYTES)),
        ("checkpointing", train.checkpointing, CHECKPOINTING),
        ("precision", train.precision, PRECISIONS),
    ):
        if value not in known:
            yield Problem(f"unknown {name} {value!r}", path=name, hint=nearest(str(value), known))
    yield from _whole("zero_stage", train.zero_stage, 0, 3)
    yield from _whole("micro_batch", train.micro_batch, 1, LARGEST)
    if train.gradient_bytes not in (2, 4):
        yield Problem(f"expected 2 or 4, found {train.gradient_bytes!r}", path="gradient_bytes")


def _quoted(text: str) -> str:
    from shlex import quote

    return quote(text)
