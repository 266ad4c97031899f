"""vLLM's V1 scheduler (vllm/v1/core/sched/scheduler.py and kv_cache_manager.py).

A step has a budget of tokens. Running requests come first: one token for each that decodes, then chunks of prompts that
were begun. One without blocks preempts the last admitted request (with priorities the least important, latest one),
which is recomputed later, from the blocks that are still cached. Only in steps without preemption waiting requests are
admitted, in order, while budget, sequences and blocks last: a whole prompt must fit besides what is taken, though its
blocks are taken chunk by chunk.

Left out: the budget of image encoders, LoRA, and that a decode after a begun prompt in the list may find the budget
used up.
"""

from planners.simulate.engines.policy import Policy
from planners.simulate.rank import Rank
from planners.simulate.requests import Request


class VllmPolicy(Policy):
    """Decodes first, then chunks of prompts, then new requests, within one budget of tokens."""

    orders = ("fcfs", "priority")
    without = ("overbooking",)

    def schedule(self, rank: Rank, now: int) -> None:
        """Plan a step as `Scheduler.schedule` does."""
        budget = self.settings.max_num_batched_tokens
        preempted = self._make_room(rank, rank.blocks_due(), now)
        rank.decodes = rank.num_decoding > 0
        budget -= rank.num_decoding
        for request in tuple(rank.prefilling):
            if budget <= 0:
                return
            if request.order not in rank.running:
                continue
            tokens = min(request.goal - request.computed, budget)
            law = rank.pool.law
            blocks = law.blocks(request.computed + tokens) - law.blocks(request.computed)
            preempted |= self._make_room(rank, rank.blocks_due() + blocks, now, request)
            if request.order not in rank.running or not rank.grow(request, tokens):
                break
            budget -= tokens
        rank.decodes = rank.num_decoding > 0
        if not preempted:
            self._admit(rank, budget, now)
            rank.decodes = rank.num_decoding > 0

    def _never_starts(self, request: Request) -> str | None:
        """Without chunks a step must take a whole sequence, which a preempted request computes again at once.

        vLLM itself does not start where `max_model_len` is more than that.
        """
        most, total = self.settings.max_num_batched_tokens, request.prompt + request.output
        if self.settings.chunked_prefill or total <= most:
            return None
        return f"{total:,} tokens are more than a step takes ({most:,}), and chunked_prefill is off"

    def _admit(self, rank: Rank, budget: int, now: int) -> None:
        settings = self.settings
        while rank.waiting and budget > 0 and len(rank.running) < settings.max_num_seqs:
            request = rank.waiting[0]
            watermark = int(settings.watermark * rank.pool.capacity) if rank.running else 0
            reserve = watermark + rank.blocks_due()
            tokens = rank.admit(request, budget, now, reserve=reserve, whole=not settings.chunked_prefill)
            if not tokens:
                return
            rank.waiting.popleft()
            budget -= tokens

    def _make_room(self, rank: Rank, blocks: int, now: int, growing: Request | None = None) -> bool:
        """Preempt until `blocks` blocks can be taken; True if anybody was preempted."""
        preempted = False
        while blocks > rank.pool.available and rank.running:
            victim = self._victim(rank)
            due = rank.blocks_due()
            rank.preempt(victim, now)
            preempted = True
            blocks -= due - rank.blocks_due()
            if victim is growing:
                break
        return preempted

    def _victim(self, rank: Rank) -> Request:
        if self.settings.order == "priority":
            return max(rank.running.values(), key=lambda r: (r.priority, r.arrival, r.order))
        return rank.running[next(reversed(rank.running))]

    def enqueue(self, rank: Rank, request: Request) -> None:
        """By arrival, or by priority and then arrival."""
        if self.settings.order != "priority":
            rank.waiting.append(request)
            return
        key = (request.priority, request.arrival)
        at = len(rank.waiting)
        while at and (rank.waiting[at - 1].priority, rank.waiting[at - 1].arrival) > key:
            at -= 1
        rank.waiting.insert(at, request)

    def requeue(self, rank: Rank, request: Request) -> None:
        """First in line, or by priority."""
        if self.settings.order == "priority":
            self.enqueue(rank, request)
        else:
            rank.waiting.appendleft(request)
