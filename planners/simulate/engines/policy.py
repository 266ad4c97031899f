"""Interface of engine schedulers: choosing the work of the next step, and requeueing preempted requests."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from planners.simulate.rank import Rank
from planners.simulate.requests import Request

Order = Literal["fcfs", "priority", "longest_prefix"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a scheduler, every default filled; names as in `scheduler` of a scenario."""

    order: Order
    max_num_seqs: int
    max_num_batched_tokens: int
    chunked_prefill: bool
    prefix_caching: bool
    block_size_tokens: int
    watermark: float
    max_model_len: int | None
    overbooking: str | None = None
    new_token_ratio: float = 0.0
    min_new_token_ratio: float = 0.0
    new_token_ratio_steps: int = 1
    retract_steps: int = 0
    most_new_tokens_counted: int = 0
    longest_sorted_queue: int = 0


class Policy(ABC):
    """An engine's scheduler: the orders of waiting requests that it knows, and the settings that it does not have."""

    orders: ClassVar[tuple[Order, ...]] = ("fcfs",)
    without: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def schedule(self, rank: Rank, now: int) -> None:
        """Plan the next step of a rank: set `rank.decodes`, fill `rank.chunks`, preempt and admit requests."""

    def enqueue(self, rank: Rank, request: Request) -> None:
        """Let a new request wait."""
        rank.waiting.append(request)

    def requeue(self, rank: Rank, request: Request) -> None:
        """Let a preempted request wait: before all others."""
        rank.waiting.appendleft(request)

    def claims(self, rank: Rank) -> int:
        """Blocks that a rank needs for its unfinished work, which others of the same pool must leave free."""
        return rank.claims()

    def refuses(self, rank: Rank, request: Request) -> str | None:
        """Reason why a request can never run here, or None."""
        longest = self.settings.max_model_len
        total = request.prompt + request.output
        if longest is not None and total > longest:
            return f"{total:,} tokens are more than max_model_len ({longest:,})"
        needed = (
            rank.pool.law.kept_blocks(total) if not rank.pool.law.local else rank.pool.law.kept_blocks(request.prompt)
        )
        if needed > rank.pool.capacity:
            return f"{total:,} tokens need {needed:,} blocks, the cache has {rank.pool.capacity:,}"
        return self._never_starts(request)

    def _never_starts(self, request: Request) -> str | None:
        """Reason why a prompt would wait for ever; None if long prompts are cut, or run alone."""
        return None
