"""One request: its sizes, and the times of its events. Times are integer nanoseconds."""

from dataclasses import dataclass
from typing import Any, Literal

from planners.simulate.cache.pool import Holding
from planners.simulate.cache.prefix_tree import Path

Outcome = Literal["waiting", "finished", "refused", "cut"]
"""finished; refused by a guard or because it is too long for the server; cut: the simulation ended before it did."""


@dataclass(slots=True, eq=False)
class Request:
    """A prompt of `prompt` tokens that is answered with `output` tokens.

    `path` are the ids of the prompt's whole blocks, for sharing; `tail` is the first id after the path (the rest of the
    prompt, and the answer). `session` tells requests of one conversation.
    """

    number: int
    arrival: int
    prompt: int
    output: int
    path: Path = ()
    path_blocks: int = 0
    tail: int = 0
    priority: int = 0
    session: int = -1
    images: int = 0
    tag: Any = None
    transferred: bool = False
    # what the scheduler keeps
    holding: Holding | None = None
    computed: int = 0
    generated: int = 0
    goal: int = 0
    joined: int = -1
    order: int = 0
    paused_at: int = -1
    # what became of it
    outcome: Outcome = "waiting"
    scheduled_at: int = -1
    first_token_at: int = -1
    last_token_at: int = -1
    cached_tokens: int = 0
    preemptions: int = 0
    server: int = -1

    @property
    def ttft(self) -> int:
        """Nanoseconds from arrival to the first token."""
        return self.first_token_at - self.arrival

    @property
    def e2e(self) -> int:
        """Nanoseconds from arrival to the last token."""
        return self.last_token_at - self.arrival

    @property
    def tpot(self) -> float:
        """Mean nanoseconds for each token after the first; 0 for a single one."""
        return (self.last_token_at - self.first_token_at) / (self.output - 1) if self.output > 1 else 0.0
