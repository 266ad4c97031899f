"""The task of a group of ranks: a spec, a layout, and the function that each rank runs. Imports no torch."""

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

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

DEFAULT_TIMEOUT, LONGEST_TIMEOUT = 60.0, 1_000_000
Log = Callable[[str], None]

NARROW = 512
"""Streams up to this width are computed with one thread: their products are too small to share."""


class Store(Protocol):
    """Key-value store that all ranks and the launcher read and write."""

    def set(self, key: str, value: str, /) -> None:
        """Write a value for other ranks."""


@dataclass(frozen=True)
class Task(ABC):
    """Work that ranks do together. Degrees are in `layout`; `timeout` is the longest wait for a rank, in seconds."""

    spec: str
    layout: Layout
    overrides: tuple[str, ...] = ()
    scale: str | None = None
    layers: int | None = None
    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0
    timeout: float = field(default=DEFAULT_TIMEOUT, kw_only=True)

    worker: ClassVar[str]
    """`module:function` of one rank's part, called with (task, log, store); imported on the rank, with torch."""
    is_safe: ClassVar[str]
    """The message to a user who stops the ranks."""

    @property
    @abstractmethod
    def copies(self) -> int:
        """Number of tensors of each weight's size on a rank; if more than one, they are divided among data ranks."""

    @abstractmethod
    def shared(self) -> dict[str, Any]:
        """Settings that must be equal on every rank, by the names of options."""

    def work(self, log: Log, store: Store) -> None:
        """One rank's part, by the task's `worker`; `log` prints on rank 0 alone."""
        module, _, function = self.worker.partition(":")
        getattr(importlib.import_module(module), function)(self, log, store)

    @abstractmethod
    def problems(self) -> Iterator[Problem]:
        """Whatever cannot be done, under a legal layout."""

    @abstractmethod
    def clean_up(self) -> None:
        """Remove the remains of a failed run."""

    def check(self) -> None:
        """Raise UserError naming everything that cannot be done, the planner's reason against the layout first."""
        reason = illegal_reason(self.graph, self.layout)
        problems = [*([Problem(f"{self.layout}: {reason}")] if reason else []), *self.problems()]
        if not 1 <= self.timeout <= LONGEST_TIMEOUT:
            problems.append(Problem(f"expected 1 to {LONGEST_TIMEOUT:,} seconds, found {self.timeout:g}", "--timeout"))
        if problems:
            raise UserError(problems)

    def fresh(self) -> Self:
        """A copy without computed values, to be sent to another process."""
        return replace(self)

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

    def undivided(self, batch: int) -> Iterator[Problem]:
        """Problem of a batch that cannot be divided among the data ranks."""
        data = self.layout.dp * self.layout.ep
        if batch % data:
            yield Problem(f"{batch} sequences cannot be divided among {data} ranks (dp x ep)", "--batch")

    def undivided_tokens(self, tokens: int, path: str) -> Iterator[Problem]:
        """Problem of a sequence whose tokens cannot be divided among the ranks of tp."""
        if tokens % self.layout.tp:
            message = f"{tokens:,} tokens cannot be divided among {self.layout.tp} ranks (tp)"
            yield Problem(message, path, hint="leave out --sequence-parallel")
