"""TensorRT-LLM's in-flight batching (docs/source/features/paged-attention-ifb-scheduler.md, capacitySchedulerPolicy).

A step holds the decodes and, within a budget of tokens, prompts, whole unless chunked context is on. Admission is
decided before: `guaranteed_no_evict` starts a request when the blocks that it and all running ones may need for their
longest answers fit, so that none is ever paused; `max_utilization` starts requests while blocks are free, and pauses
the latest ones when blocks run out.
"""

from l4spec.units import ceil_div
from planners.simulate.engines.policy import Policy
from planners.simulate.rank import Rank
from planners.simulate.requests import Request


class TensorRtLlmPolicy(Policy):
    """Decodes and prompts in one step; admission by the longest answers, or by free blocks."""

    orders = ("fcfs",)
    without = ("watermark",)

    def schedule(self, rank: Rank, now: int) -> None:
        """Plan a step."""
        settings = self.settings
        paused = False
        while rank.blocks_due() > rank.pool.available and rank.running:
            rank.preempt(rank.running[next(reversed(rank.running))], now)
            paused = True
        rank.decodes = rank.num_decoding > 0
        budget = settings.max_num_batched_tokens - rank.num_decoding
        for request in tuple(rank.prefilling):
            tokens = min(request.goal - request.computed, budget)
            if tokens <= 0 or not rank.grow(request, tokens):
                break
            budget -= tokens
        if not paused:
            self._admit(rank, budget, now)
            rank.decodes = rank.num_decoding > 0

    def _admit(self, rank: Rank, budget: int, now: int) -> None:
        settings = self.settings
        guaranteed = settings.overbooking != "max_utilization"
        promised = self._promised(rank) if guaranteed and rank.waiting else 0
        while rank.waiting and budget > 0 and len(rank.running) < settings.max_num_seqs:
            request = rank.waiting[0]
            own = rank.pool.law.blocks(request.prompt + request.output) - rank.pool.law.blocks(request.prompt)
            reserve = promised + own if guaranteed else rank.blocks_due()
            tokens = rank.admit(request, budget, now, reserve=reserve, whole=self._whole(rank, request))
            if not tokens:
                return
            rank.waiting.popleft()
            budget -= tokens
            promised += _missing(rank, request, 0 if request.transferred else tokens) if guaranteed else 0

    def claims(self, rank: Rank) -> int:
        """Those of the longest answers too, where they are guaranteed."""
        if self.settings.overbooking == "max_utilization":
            return rank.claims()
        return max(rank.claims(), self._promised(rank))

    def _whole(self, rank: Rank, request: Request) -> bool:
        """True if a prompt must run in one step. A prompt longer than the budget of a step is cut anyway."""
        return not self.settings.chunked_prefill and request.prompt <= self.settings.max_num_batched_tokens

    def _promised(self, rank: Rank) -> int:
        """Blocks that running requests may still take: `_missing` of each, inlined since every step needs the sum."""
        law, clock = rank.pool.law, rank.clock
        planned = {request.order: tokens for request, tokens in rank.chunks}
        blocks = 0
        for order, request in rank.running.items():
            taken = request.computed + planned.get(order, 0) + (clock - request.joined if request.joined >= 0 else 0)
            left = ceil_div(request.prompt + request.output, law.block_size) - ceil_div(taken, law.block_size)
            blocks += left if left > 0 else 0
        return blocks * law.groups


def _missing(rank: Rank, request: Request, planned: int) -> int:
    """Blocks that a running request may still take after `planned` tokens of this step."""
    law = rank.pool.law
    return max(0, law.blocks(request.prompt + request.output) - law.blocks(rank.computed(request) + planned))
