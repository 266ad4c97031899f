"""A rank whose decodes check drafts: each step brings one token and as many drafted ones as are accepted.

Of k drafted tokens the first is accepted with the first probability, the second with the second if the first was, and
so on; blocks are taken for all of them before the step, as vLLM's lookahead slots are. Requests advance by different
numbers, so they are counted one by one here.
"""

from collections.abc import Iterator
from random import Random

from l4spec.units import ceil_div
from planners.simulate.cache.pool import BlockPool
from planners.simulate.rank import Rank, Scheduler
from planners.simulate.requests import Request
from planners.simulate.times.interface import StepBatch


class SpeculativeRank(Rank):
    """As `Rank`, with `acceptance` per drafted position."""

    def __init__(self, pool: BlockPool, policy: Scheduler, acceptance: tuple[float, ...], seed: str) -> None:
        super().__init__(pool, policy)
        self.acceptance = acceptance
        self._random = Random(seed)
        self._decoding: dict[int, Request] = {}
        self._slots: dict[int, int] = {}

    def computed(self, request: Request) -> int:
        """Tokens of a running request whose keys and values are in the cache."""
        return request.computed

    def generated(self, request: Request) -> int:
        """Tokens that a running request has got so far."""
        return request.generated

    def batch(self) -> StepBatch:
        """The planned step; every decoding sequence brings its last token and the drafted ones."""
        batch = super().batch()
        batch.checked = 1 + len(self.acceptance)
        return batch

    def blocks_due(self) -> int:
        """Blocks for the last token and the drafted ones of all that decode."""
        return sum(blocks for _, blocks in self._short())

    def take_decode_blocks(self, steps: int) -> None:
        """Take the blocks of the next step."""
        for request, blocks in list(self._short()):
            assert request.holding is not None, "what decodes holds blocks"
            room = self.pool.take(request.holding, blocks)
            assert room, "room was counted"
            self._slots[request.order] = self._slots_up_to(request.computed + 1 + len(self.acceptance))

    def _short(self) -> Iterator[tuple[Request, int]]:
        """The decoding requests whose blocks end before the next step's tokens, and how many more each needs."""
        blocks, more = self.pool.law.blocks, 1 + len(self.acceptance)
        for order, request in self._decoding.items():
            if request.computed + more > self._slots[order]:
                yield request, blocks(request.computed + more) - blocks(self._slots[order])

    def _slots_up_to(self, tokens: int) -> int:
        """Slots of the blocks that hold so many tokens."""
        return ceil_div(tokens, self.pool.law.block_size) * self.pool.law.block_size

    def steps_until_change(self, most: int) -> int:
        """One: how far each request gets is drawn after every step."""
        return 1

    def join(self, request: Request) -> None:
        """Let a request decode."""
        request.joined = self.clock
        self.num_decoding += 1
        self.context += request.computed
        self._decoding[request.order] = request
        self._slots[request.order] = self._slots_up_to(request.computed)

    def end_step(self, steps: int, now: int) -> tuple[list[Request], list[Request]]:
        """Advance every decoding request by its accepted tokens, and chunks of prompts as in a plain rank."""
        done: list[Request] = []
        if self.decodes:
            self.clock += 1
            for request in tuple(self._decoding.values()):
                tokens = min(1 + self._accepted(), request.output - request.generated)
                request.computed += tokens
                request.generated += tokens
                self.context += tokens
                self.resumed.append(((now - request.last_token_at) // tokens, tokens))
                request.last_token_at = now
                self._release(request)
                if request.generated >= request.output:
                    self._share(request, request.computed // self.block)
                    self._leave(request)
                    self._finish(request, now)
                    done.append(request)
        self.decodes = False
        first, ended = super().end_step(0, now)
        return first, done + ended

    def gaps(self, step: int) -> list[tuple[int, int]]:
        """None: `end_step` notes them, since only it knows how many tokens came together and share the time evenly."""
        self.arrived.clear()
        return []

    def preempt(self, request: Request, now: int) -> None:
        """As a plain rank does; the next token's gap counts from the last token."""
        super().preempt(request, now)
        if request.paused_at >= 0:
            request.paused_at = request.last_token_at

    def _first_token(self, request: Request, now: int, first: list[Request], done: list[Request]) -> None:
        request.last_token_at = now
        super()._first_token(request, now, first, done)

    def _admit_transferred(self, request: Request, reserve: int, now: int) -> int:
        request.last_token_at = request.first_token_at
        return super()._admit_transferred(request, reserve, now)

    def _accepted(self) -> int:
        for position, probability in enumerate(self.acceptance):
            if self._random.random() >= probability:
                return position
        return len(self.acceptance)

    def _release(self, request: Request) -> None:
        if self.pool.law.local and request.holding is not None:
            self._share(request, request.computed // self.block)
            self.pool.release(request.holding, request.computed)

    def _leave(self, request: Request) -> None:
        del self._decoding[request.order], self._slots[request.order]
        self.num_decoding -= 1
        self.context -= request.computed
