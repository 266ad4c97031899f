"""One scheduler with its cache and its batch: the mechanics that every engine's policy is made of.

Decoding requests are not touched step by step. They share a clock of decode steps: a request that joined at tick j with
c computed tokens has c + clock - j now, it takes a block whenever that is a multiple of the block size, and its last
step is known when it joins. So the cost of a step is proportional to its changes, and runs of equal steps are processed
at once.
"""

from collections import deque
from heapq import heappop, heappush
from typing import Protocol

from planners.simulate.cache.pool import BlockPool
from planners.simulate.requests import Request
from planners.simulate.times.interface import Chunk, StepBatch


class Scheduler(Protocol):
    """Interface of an engine's policy to a rank."""

    def schedule(self, rank: "Rank", now: int) -> None:
        """Plan the next step."""
        ...

    def enqueue(self, rank: "Rank", request: Request) -> None:
        """Let a new request wait."""
        ...

    def requeue(self, rank: "Rank", request: Request) -> None:
        """Let a preempted request wait."""
        ...

    def refuses(self, rank: "Rank", request: Request) -> str | None:
        """Reason why a request can never run here, or None."""
        ...

    def claims(self, rank: "Rank") -> int:
        """Blocks that a rank needs for its unfinished work, which others must leave free."""
        ...


class Rank:
    """Requests that wait, prefill and decode on one set of GPUs, and the blocks they hold."""

    def __init__(self, pool: BlockPool, policy: Scheduler) -> None:
        self.pool = pool
        self.policy = policy
        self.block = pool.law.block_size
        self.waiting: deque[Request] = deque()
        self.running: dict[int, Request] = {}
        self.prefilling: list[Request] = []
        self.chunks: list[tuple[Request, int]] = []
        self.num_decoding = 0
        self.context = 0
        self.clock = 0
        self.decodes = False
        self.due: list[dict[int, Request]] = [{} for _ in range(self.block)]
        self._finishing: list[tuple[int, int, Request]] = []
        self._orders = 0
        self.cohorts: list[list[int]] = []
        self.resumed: list[tuple[int, int]] = []
        self.arrived: dict[int, int] = {}
        self.num_preemptions = 0
        self.looked_up_tokens = 0
        self.hit_tokens = 0

    # -- what is there -------------------------------------------------------------------------------------------

    @property
    def load(self) -> int:
        """Requests that wait or run."""
        return len(self.waiting) + len(self.running)

    @property
    def has_work(self) -> bool:
        """True if any request waits or runs."""
        return bool(self.running or self.waiting)

    def computed(self, request: Request) -> int:
        """Tokens of a running request whose keys and values are in the cache."""
        return request.computed + self.clock - request.joined if request.joined >= 0 else request.computed

    def generated(self, request: Request) -> int:
        """Tokens that a running request has got so far."""
        return request.generated + self.clock - request.joined if request.joined >= 0 else request.generated

    def batch(self) -> StepBatch:
        """The work of the step that `policy.schedule` has planned."""
        decode = self.num_decoding if self.decodes else 0
        chunks = [Chunk(new, r.computed, r.computed + new >= r.goal) for r, new in self.chunks]
        tiles = sum(r.images for r, new in self.chunks if r.images and r.computed + new >= r.goal)
        return StepBatch(decode, self.context + decode if decode else 0, chunks, tiles)

    # -- what a policy may do ------------------------------------------------------------------------------------

    def cached_blocks(self, request: Request) -> int:
        """Blocks of tokens at the beginning of a waiting request that are cached; its last token is computed anyway."""
        return self.pool.cached_length(_whole_path(request, self.block), (_goal(request) - 1) // self.block)

    def admit(self, request: Request, budget: int, now: int, *, reserve: int, whole: bool) -> int:
        """Start a waiting request with up to `budget` tokens; returns how many, or 0 without room.

        Room must be for the whole prompt and `reserve` blocks besides, though only the first chunk's blocks are taken.
        With `whole` a prompt that exceeds the budget is not started.
        """
        if request.transferred:
            return self._admit_transferred(request, reserve, now)
        pool, goal = self.pool, _goal(request)
        holding = pool.holding()
        cached = pool.attach(holding, _whole_path(request, self.block), (goal - 1) // self.block) * self.block
        chunk = min(goal - cached, budget)
        law = pool.law
        needed = law.blocks(goal) - law.blocks(cached) + law.pages
        if needed + reserve > pool.available or (whole and chunk < goal - cached):
            pool.free(holding)
            return 0
        request.holding, request.computed, request.goal, request.joined = holding, cached, goal, -1
        if request.scheduled_at < 0:
            request.scheduled_at = now
            request.cached_tokens = cached
        self.looked_up_tokens += goal
        self.hit_tokens += cached
        request.order = self._orders = self._orders + 1
        self.running[request.order] = request
        self.prefilling.append(request)
        assert pool.take(holding, law.pages), "room was counted"
        assert self.grow(request, chunk), "room was counted"
        return chunk

    def _admit_transferred(self, request: Request, reserve: int, now: int) -> int:
        """Start a request whose prompt was computed elsewhere: it needs its blocks, and decodes at once."""
        pool, law, goal = self.pool, self.pool.law, request.prompt
        holding = pool.holding()
        cached = pool.attach(holding, _whole_path(request, self.block), goal // self.block) * self.block
        needed = law.blocks(goal) - law.blocks(cached) + law.pages
        if needed + law.groups + reserve > pool.available:
            pool.free(holding)
            return 0
        request.holding, request.computed, request.goal, request.transferred = holding, goal, goal, False
        request.scheduled_at = now if request.scheduled_at < 0 else request.scheduled_at
        request.order = self._orders = self._orders + 1
        self.running[request.order] = request
        room = pool.take(holding, needed)
        assert room, "room was counted"
        self._share(request, goal // self.block)
        if law.local:
            pool.release(holding, goal)
        self.join(request)
        self.arrived[request.order] = now - request.first_token_at
        return 1

    def grow(self, request: Request, tokens: int) -> bool:
        """Plan `tokens` more tokens of a prompt, with their blocks; False, and nothing changes, without room."""
        law, holding = self.pool.law, request.holding
        assert holding is not None
        before, after = request.computed, request.computed + tokens
        if not self.pool.take(holding, law.blocks(after) - law.blocks(before)):
            return False
        self.chunks.append((request, tokens))
        self._share(request, after // self.block)
        return True

    def blocks_due(self) -> int:
        """Blocks that the decoding requests take in the next step."""
        return len(self.due[self.clock % self.block]) * self.pool.groups

    def preempt(self, request: Request, now: int) -> None:
        """Take a running request's blocks away; it waits again, first in line, and computes its tokens again."""
        was_decoding = request.joined >= 0
        request.computed, request.generated = self.computed(request), self.generated(request)
        self._share(request, request.computed // self.block)
        if was_decoding:
            self._leave(request)
        else:
            self.prefilling.remove(request)
            self.chunks = [(other, tokens) for other, tokens in self.chunks if other is not request]
        self._stop(request)
        request.computed, request.joined = 0, -1
        request.preemptions += 1
        waited = self.arrived.pop(request.order, 0)
        if was_decoding:
            request.paused_at = now - waited
        self.num_preemptions += 1
        self.policy.requeue(self, request)

    def claims(self) -> int:
        """Blocks that the next decode step takes, and those that prompts which are begun still need."""
        law, planned = self.pool.law, {request.order: tokens for request, tokens in self.chunks}
        missing = (
            law.blocks(request.goal) - law.blocks(request.computed + planned.get(request.order, 0))
            for request in self.prefilling
        )
        return self.blocks_due() + sum(missing)

    # -- what a step does ----------------------------------------------------------------------------------------

    def take_decode_blocks(self, steps: int) -> None:
        """Take the blocks of the next `steps` decode steps. There must be room for all of them."""
        if self.pool.law.local:
            for tick in range(self.clock, self.clock + steps):
                self._take_and_release(tick)
            return
        for offset in range(min(steps, self.block)):
            due = self.due[(self.clock + offset) % self.block]
            if due:
                times = (steps - offset - 1) // self.block + 1
                self.pool.take_for_each((request.holding for request in due.values()), times)

    def _take_and_release(self, tick: int) -> None:
        """The blocks of one decode step, and those that local layers no longer reach."""
        due = self.due[tick % self.block]
        self.pool.take_for_each((request.holding for request in due.values()), 1)
        for request in due.values():
            computed = request.computed + tick - request.joined
            self._share(request, computed // self.block)
            assert request.holding is not None, "what decodes holds blocks"
            self.pool.release(request.holding, computed)

    def steps_until_change(self, most: int) -> int:
        """Number of decode steps, at most `most`, before a request ends or the blocks do not suffice."""
        finishing = self._finishing
        while finishing and finishing[0][1] not in self.running:
            heappop(finishing)  # it was preempted
        steps = min(most, finishing[0][0] - self.clock) if finishing else most
        room, groups, block = self.pool.available, self.pool.groups, self.block
        if (self.num_decoding * (steps // block + 1)) * groups <= room:
            return steps
        for step in range(steps):
            room -= len(self.due[(self.clock + step) % block]) * groups
            if room < 0:
                return step
        return steps

    def end_step(self, steps: int, now: int) -> tuple[list[Request], list[Request]]:
        """Count `steps` decode steps and the planned chunks as done: who got a first token, and who ended."""
        first: list[Request] = []
        done: list[Request] = []
        if self.decodes:
            self.clock += steps
            self.context += self.num_decoding * steps
            while self._finishing and self._finishing[0][0] <= self.clock:
                _, order, request = heappop(self._finishing)
                if self.running.get(order) is request:
                    done.append(request)
        for request in done:
            request.computed, request.generated = self.computed(request), self.generated(request)
            self._share(request, request.computed // self.block)
            self._leave(request)
            self._finish(request, now)
        for request, tokens in self.chunks:
            request.computed += tokens
            if self.pool.law.local and request.holding is not None:
                self.pool.release(request.holding, request.computed)
            if request.computed >= request.goal:
                self._first_token(request, now, first, done)
        self.chunks = []
        return first, done

    def _first_token(self, request: Request, now: int, first: list[Request], done: list[Request]) -> None:
        """The token that ends a prefill; one more is known than computed."""
        self.prefilling.remove(request)
        request.generated += 1
        if request.first_token_at < 0:
            request.first_token_at = now
            first.append(request)
        elif request.paused_at >= 0:
            self.resumed.append((now - request.paused_at, 1))
        if request.generated >= request.output:
            self._finish(request, now)
            done.append(request)
            return
        self.join(request)

    def join(self, request: Request) -> None:
        """Let a request decode whose tokens are computed except for the last one."""
        request.joined = self.clock
        self.num_decoding += 1
        self.context += request.computed
        self.due[(self.clock - request.computed) % self.block][request.order] = request
        heappush(self._finishing, (self.clock + request.output - request.generated, request.order, request))

    def gaps(self, step: int) -> list[tuple[int, int]]:
        """Gaps between tokens in a decode step of `step` nanoseconds that is about to end: (nanoseconds, requests).

        A request that had to wait for others' prompts since its last token waited that much longer, and one whose
        prompt was computed elsewhere since then.
        """
        stalled = sum(count for count, _ in self.cohorts) + len(self.arrived)
        gaps = [(step + waited, count) for count, waited in self.cohorts]
        gaps += [(step + waited, 1) for waited in self.arrived.values()]
        self.cohorts = []
        self.arrived.clear()
        if self.num_decoding > stalled:
            gaps.append((step, self.num_decoding - stalled))
        return gaps

    def stall(self, step: int) -> None:
        """Note that the decoding requests waited for a step in which they took no part."""
        for cohort in self.cohorts:
            cohort[1] += step
        for order in self.arrived:
            self.arrived[order] += step
        newcomers = self.num_decoding - sum(count for count, _ in self.cohorts) - len(self.arrived)
        if newcomers > 0:
            self.cohorts.append([newcomers, step])

    def _leave(self, request: Request) -> None:
        """Take a request whose counts are up to date out of the decoding ones."""
        del self.due[(self.clock - request.computed) % self.block][request.order]
        self.num_decoding -= 1
        self.context -= request.computed

    def _finish(self, request: Request, now: int) -> None:
        request.last_token_at = now
        request.outcome = "finished"
        self._stop(request)

    def _stop(self, request: Request) -> None:
        del self.running[request.order]
        assert request.holding is not None
        self.pool.free(request.holding)
        request.holding = None

    def _share(self, request: Request, upto: int) -> None:
        """Put whole blocks up to number `upto` into the prefix tree."""
        pool, holding = self.pool, request.holding
        if not pool.caching or holding is None or holding.cached >= upto:
            return
        begin, at = holding.cached, 0
        for start, stop in _whole_path(request, self.block, upto):
            size = stop - start
            if at + size > begin:
                lower, upper = max(begin - at, 0), min(size, upto - at)
                if upper > lower:
                    pool.share(holding, start + lower, start + upper)
            at += size
            if at >= upto:
                return


def _goal(request: Request) -> int:
    """Tokens that a waiting request must compute: its prompt, and after a preemption its generated tokens."""
    return request.prompt + request.generated


def _whole_path(request: Request, block: int, upto: int | None = None) -> tuple[tuple[int, int], ...]:
    """Ids of the request's blocks, those after its path numbered on from its tail."""
    path = request.path
    length = request.path_blocks
    needed = _goal(request) // block if upto is None else upto
    if needed <= length:
        return path
    if path and path[-1][1] == request.tail:
        return (*path[:-1], (path[-1][0], request.tail + needed - length))
    return (*path, (request.tail, request.tail + needed - length))
