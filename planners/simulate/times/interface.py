"""Interface of step times: the contents of a step, and the seconds that it takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)
class Chunk:
    """`new` tokens of a prompt that follow `cached` ones; `last` tells that a token is sampled after them."""

    new: int
    cached: int
    last: bool


@dataclass(slots=True)
class StepBatch:
    """The work of one rank in a step.

    `decode` sequences bring one token each and read `context` tokens in all, their own included; `checked` is how
    many tokens each of them brings when drafts are checked. `chunks` are pieces of prompts; `tiles` image tiles, in
    the mean where a request is a mean one.
    """

    decode: int
    context: int
    chunks: Sequence[Chunk] = ()
    tiles: float = 0
    checked: int = 1

    @property
    def tokens(self) -> int:
        """New tokens of the step."""
        return self.decode * self.checked + sum(chunk.new for chunk in self.chunks)

    @property
    def rows_of_logits(self) -> int:
        """Rows for which the head runs."""
        return self.decode * self.checked + sum(chunk.last for chunk in self.chunks)


class StepTimes(Protocol):
    """The time of steps on one replica."""

    @property
    def basis(self) -> tuple[str, ...]:
        """Basis of the times, line by line: sources, factors, assumptions, extrapolations."""
        ...

    @property
    def request_seconds(self) -> float:
        """Time in which a front end handles a request before it reaches the scheduler."""
        ...

    def seconds(self, batches: Sequence[StepBatch]) -> float:
        """Seconds from the start of a step to the next one, with one batch for each rank of the replica."""
        ...


class ConstantStepTimes:
    """Every step takes `step` seconds and `per_token` for each new token of its fullest rank."""

    def __init__(self, step: float, per_token: float = 0.0) -> None:
        self.step, self.per_token = step, per_token

    @property
    def basis(self) -> tuple[str, ...]:
        """Note that the scenario sets the times."""
        return (f"steps of {self.step * 1e3:g} ms, as the scenario says; no hardware stands for them",)

    @property
    def request_seconds(self) -> float:
        """None."""
        return 0.0

    def seconds(self, batches: Sequence[StepBatch]) -> float:
        """The fixed time."""
        return self.step + self.per_token * max(batch.tokens for batch in batches)
