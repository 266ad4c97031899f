"""Requests that pass several stages: guards on the prompt, the model that answers, guards on the answer.

The user's request is never scheduled itself: each stage makes a request of its own for its model. A refusal ends the
chain. A blocking stage after the answer holds back the answer's first token until it is done; a streaming one lets it
through, and only its load counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from l4spec.spec.scenario import Stage
from planners.simulate.cluster import EventClock, Listener
from planners.simulate.requests import Request
from planners.simulate.workload.draws import stream

_NS = 1_000_000_000


@dataclass(slots=True)
class Journey:
    """A user's request with its current stage; `streaming` while its answer is shown during a check."""

    user: Request
    stage: int
    streaming: bool = False


class StageChain:
    """The stages, the models' entrances, and which callback runs when a user's request has ended."""

    def __init__(
        self,
        stages: Sequence[Stage],
        entrances: Mapping[str, Callable[[Request], None]],
        clock: EventClock,
        listener: Listener,
        seed: int,
        block_sizes: Mapping[str, int],
    ) -> None:
        self.stages = stages
        self.entrances = entrances
        self.clock = clock
        self.listener = listener
        self.block_sizes = block_sizes
        self.refusals = [0] * len(stages)
        self._random = [stream(seed, f"refusals/{stage.name}") for stage in stages]
        self._tails = count(1 << 100, 1 << 40)
        self._templates = {stage.name: 1 << 90 | index << 50 for index, stage in enumerate(stages)}

    def submit(self, user: Request) -> None:
        """A user's request begins with the first stage."""
        self._enter(Journey(user, 0))

    def finished(self, part: Request, now: int) -> None:
        """A stage's request has ended."""
        journey: Journey = part.tag
        user, stage = journey.user, self.stages[journey.stage]
        if part.outcome == "refused" and journey.streaming:
            return  # the answer was shown unchecked, and has ended by itself
        if part.outcome == "refused":
            self._end(journey, "refused", now)
            return
        if answers(stage):
            user.first_token_at, user.last_token_at = part.first_token_at, part.last_token_at
            user.scheduled_at, user.cached_tokens = part.scheduled_at, part.cached_tokens
            user.preemptions += part.preemptions
        self._passed(journey, now)

    def _passed(self, journey: Journey, now: int) -> None:
        """A stage is done: refuse, or continue."""
        stage = self.stages[journey.stage]
        refused = self._random[journey.stage].random() < stage.refusal_rate
        if refused:
            self.refusals[journey.stage] += 1
        if journey.streaming:
            return  # the answer was shown; the check was load, and a refusal comes too late to change its times
        if refused:
            self._end(journey, "refused", now)
            return
        if journey.user.first_token_at >= 0 and not answers(stage):
            journey.user.first_token_at = journey.user.last_token_at = now
        self._enter(Journey(journey.user, journey.stage + 1))

    def _enter(self, journey: Journey) -> None:
        now = self.clock.now
        if journey.stage >= len(self.stages):
            self._end(journey, "finished", now)
            return
        stage = self.stages[journey.stage]
        if journey.user.first_token_at >= 0 and stage.check == "streaming":
            self._enter(Journey(journey.user, journey.stage + 1))
            journey.streaming = True
        if stage.model is None:
            self.clock.at(now + round((stage.seconds or 0.0) * _NS), self._timed, journey)
        else:
            self.entrances[stage.model](self._part(journey, stage))

    def _timed(self, journey: Journey) -> None:
        self._passed(journey, self.clock.now)

    def _part(self, journey: Journey, stage: Stage) -> Request:
        """The request that a stage sends to its model."""
        user = journey.user
        if answers(stage):
            part = Request(
                user.number, self.clock.now, user.prompt, user.output, user.path, user.path_blocks, user.tail
            )
        else:
            read = (user.prompt if stage.reads != "answer" else 0) + (user.output if stage.reads != "prompt" else 0)
            template = stage.template_tokens or 0
            part = Request(user.number, self.clock.now, template + read, stage.output_tokens or 1)
            part.tail = next(self._tails)
            part.path, part.path_blocks = self._template_path(stage, template, part)
        part.images = user.images if sees_images(stage) else 0
        part.priority, part.tag = user.priority, journey
        return part

    def _template_path(self, stage: Stage, template: int, part: Request) -> tuple[tuple[tuple[int, int], ...], int]:
        """A guard's instructions are equal in all its requests, so their blocks are shared."""
        blocks = template // self.block_sizes[stage.model or ""]
        if not blocks:
            return (), 0
        start = self._templates[stage.name]
        return ((start, start + blocks),), blocks

    def _end(self, journey: Journey, outcome: str, now: int) -> None:
        user = journey.user
        if outcome == "refused":
            user.outcome = "refused"
        else:
            user.outcome = "finished"
            user.generated = user.output
        self.listener.finished(user, now)


def answers(stage: Stage) -> bool:
    """True if a stage writes the answer: it has a model and no verdict's length."""
    return stage.model is not None and stage.output_tokens is None


def sees_images(stage: Stage) -> bool:
    """True if a stage reads the prompt, in which images are."""
    return answers(stage) or stage.reads != "answer"


def comes_at_once(stages: Sequence[Stage]) -> bool:
    """True if a blocking check holds the answer back, so that users see no gaps between its tokens."""
    places = [number for number, stage in enumerate(stages) if answers(stage)]
    return bool(places) and any(stage.check == "blocking" for stage in stages[places[-1] + 1 :])
