"""TensorRT-LLM's in-flight batching (docs/source/features/paged-attention-ifb-scheduler.md, capacitySchedulerPolicy).

A step holds the decodes and, within a budget of tokens, prompts, whole unless chunked context is on. What is admitted
is decided before: `guaranteed_no_evict` starts a request when the blocks that it and all running ones may need for
their longest answers fit, so nothing is ever paused; `max_utilization` starts whatever fits now, and pauses the latest
requests when blocks run out.
"""

from planners.simulate.engines.policy import Policy
from planners.simulate.rank import Rank
from planners.simulate.requests import Request


class TensorRtLlmPolicy(Policy):
    """Decodes and prompts in one step; admission by the longest answers, or by what is free."""

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
        promised = sum(self._promised(rank, other) for other in rank.running.values()) if guaranteed else 0
        while rank.waiting and budget > 0 and len(rank.running) < settings.max_num_seqs:
            request = rank.waiting[0]
            own = rank.pool.law.blocks(request.prompt + request.output) - rank.pool.law.blocks(request.prompt)
            reserve = promised + own if guaranteed else rank.blocks_due()
            tokens = rank.admit(request, budget, now, reserve=reserve, whole=self._whole(rank, request))
            if not tokens:
                return
            rank.waiting.popleft()
            budget -= tokens
            promised += self._promised(rank, request) if guaranteed else 0

    def claims(self, rank: Rank) -> int:
        """Those of the longest answers too, where they are guaranteed."""
        if self.settings.overbooking == "max_utilization":
            return rank.claims()
        return max(rank.claims(), sum(self._promised(rank, request) for request in rank.running.values()))

    def _whole(self, rank: Rank, request: Request) -> bool:
        """Whether a prompt must go in one step. One longer than the budget of a step is cut anyway."""
        return not self.settings.chunked_prefill and request.prompt <= self.settings.max_num_batched_tokens

    def _promised(self, rank: Rank, request: Request) -> int:
        """Blocks that a running request may still take."""
        law = rank.pool.law
        taken = request.computed if request.joined < 0 else rank.computed(request)
        planned = sum(tokens for other, tokens in rank.chunks if other is request)
        return max(0, law.blocks(request.prompt + request.output) - law.blocks(taken + planned))
