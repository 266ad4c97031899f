"""SGLang's scheduler (python/sglang/srt/managers/scheduler.py, schedule_policy.py, schedule_batch.py).

Prompts go before decodes: while a waiting request can be admitted, a step holds prompts alone, and decodes wait for it.
A request is admitted when the pool has room for its prompt, for its own longest answer, and for the expected tokens of
the running ones: their remaining tokens times the new-token ratio. The ratio begins at 0.7 and falls with every decode
step to its least. When decodes find no room, requests are retracted, those with the fewest answers first, until there
is room for 20 steps of the others, and the ratio rises to what the running ones would have needed.

With `longest_prefix` the queue is sorted by the cached prefix of each prompt, if it is short enough. Left out: mixed
chunks (off by default), overlap scheduling, and that prompts whose beginning another waiting one shares are put back.
"""

from planners.simulate.engines.policy import Policy, Settings
from planners.simulate.rank import Rank
from planners.simulate.requests import Request


class SglangPolicy(Policy):
    """Steps of prompts before steps of decodes, admission by a ratio of tokens to come."""

    orders = ("fcfs", "priority", "longest_prefix")
    without = ("watermark", "overbooking")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.ratio = settings.new_token_ratio
        self._decay = (settings.new_token_ratio - settings.min_new_token_ratio) / max(settings.new_token_ratio_steps, 1)
        self._clock = 0

    def schedule(self, rank: Rank, now: int) -> None:
        """Plan a step of prompts, or else one of decodes."""
        self._decayed(rank)
        rank.decodes = False
        budget = self.settings.max_num_batched_tokens
        for request in tuple(rank.prefilling):
            tokens = min(request.goal - request.computed, budget)
            if tokens <= 0 or not rank.grow(request, tokens):
                break
            budget -= tokens
        self._admit(rank, budget, now)
        if rank.chunks:
            return
        if rank.num_decoding:
            self._retract(rank, now)
            rank.decodes = rank.num_decoding > 0

    def _decayed(self, rank: Rank) -> None:
        """Let the ratio fall by the decode steps since the last time."""
        steps, self._clock = rank.clock - self._clock, rank.clock
        self.ratio = max(self.settings.min_new_token_ratio, self.ratio - steps * self._decay)

    def _admit(self, rank: Rank, budget: int, now: int) -> None:
        settings = self.settings
        self._sort(rank)
        expected = sum(self._still_expected(rank, other) for other in rank.running.values())
        while rank.waiting and budget > 0 and len(rank.running) < settings.max_num_seqs:
            request = rank.waiting[0]
            longest = min(request.output - request.generated, settings.most_new_tokens_counted or request.output)
            reserve = rank.pool.law.blocks(longest) + rank.pool.law.blocks(int(expected))
            if not rank.running:
                reserve = 0  # alone it runs, whatever is expected
            whole = not settings.chunked_prefill
            first = whole and not rank.chunks  # the first whole prompt of a step goes, however long it is
            most = max(budget, request.prompt + request.generated) if first else budget
            tokens = rank.admit(request, most, now, reserve=reserve, whole=whole)
            if not tokens:
                return
            rank.waiting.popleft()
            budget -= tokens
            expected += longest * self.ratio

    def _still_expected(self, rank: Rank, request: Request) -> float:
        left = request.output - rank.generated(request)
        most = self.settings.most_new_tokens_counted
        return min(left, most or left) * self.ratio

    def _sort(self, rank: Rank) -> None:
        waiting = rank.waiting
        if self.settings.order == "priority":
            ordered = sorted(waiting, key=lambda r: (r.priority, r.arrival, r.number))
        elif self.settings.order == "longest_prefix" and 1 < len(waiting) <= self.settings.longest_sorted_queue:
            ordered = sorted(waiting, key=lambda r: -rank.cached_blocks(r))
        else:
            return
        waiting.clear()
        waiting.extend(ordered)

    def _retract(self, rank: Rank, now: int) -> None:
        """Make room for the next decode step: fewest answers first, of equals the longest prompt."""
        if rank.blocks_due() <= rank.pool.available:
            return
        decoding = [request for request in rank.running.values() if request.joined >= 0]
        decoding.sort(key=lambda r: (rank.generated(r), -r.prompt), reverse=True)
        per_step = max(1, rank.pool.groups)
        retracted = False
        alone = rank.pool.claimed == 0  # then the last one goes on, since its blocks suffice
        while len(decoding) > alone and (
            not retracted
            or rank.pool.available * rank.block < len(decoding) * self.settings.retract_steps * per_step
            or rank.blocks_due() > rank.pool.available
        ):
            rank.preempt(decoding.pop(), now)
            retracted = True
        written = sum(rank.generated(request) for request in decoding)
        longest = sum(request.output for request in decoding)
        steps = self.settings.retract_steps * len(decoding)
        self.ratio = min(1.0, (written + steps) / max(longest, 1))
