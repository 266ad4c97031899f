"""Step times from a model's spec, by the planner's step model for each batch. The only file that knows it."""

from collections.abc import Callable, Sequence

from l4spec.errors import Problem, UserError
from planners.simulate.times.interface import Chunk, StepBatch
from planners.timing.efficiency import ServingEfficiency, extrapolations
from planners.timing.layer_demand import Step
from planners.timing.step import StepModel

Draft = Callable[[StepBatch], float]
"""Seconds in which a draft proposes the tokens that a step checks."""


class PlannedTimes:
    """Seconds of steps of a deployment by the planner's step model and its engine's fitted factors.

    Chunks of several prompts are timed as one that attends to as many pairs: its length and its cached part are the
    chunks' means, weighted by their tokens. Raises UserError where the planner can tell no time.
    """

    def __init__(
        self,
        model: StepModel,
        draft: Draft | None = None,
        tile_seconds: float = 0.0,
        remade: "Callable[[StepModel], PlannedTimes] | None" = None,
    ) -> None:
        if model.unknown is not None:
            raise UserError([Problem(f"no time can be computed: {model.unknown}", hint="give `times` of kind kernels")])
        if model.efficiency is None:
            message = "no published measurements of this engine: the time of a step is not known"
            raise UserError([Problem(message, path="engine", hint="use vllm, sglang-hybrid or tensorrt-llm")])
        self.model = model
        self.factors = model.efficiency
        self.draft = draft
        self.tile_seconds = tile_seconds
        self._remade = remade

    def with_factors(self, factors: ServingEfficiency) -> "PlannedTimes":
        """The same deployment's times by other factors, those of its draft and its image tiles too."""
        model = self.model.with_efficiency(factors)
        return PlannedTimes(model) if self._remade is None else self._remade(model)

    @property
    def basis(self) -> tuple[str, ...]:
        """Factors, their source and errors, and extrapolations."""
        factors, routed = self.factors, any(g.declaration.routed is not None for g in self.model.graph.groups)
        lines = [f"planner's step model with {factors.name}'s factors ({factors.source})"]
        for error in factors.errors:
            lines.append(
                f"{error.metric} of closed loops: median error {error.median:.0%}, p90 {error.p90:.0%} "
                f"on {error.num_rows} published rows that the fit did not see"
            )
        return (*lines, *extrapolations(factors, self.model.machine.hardware.name, routed=routed))

    @property
    def request_seconds(self) -> float:
        """Seconds of the front end before a request reaches the scheduler."""
        return self.model.request_seconds

    def seconds(self, batches: Sequence[StepBatch]) -> float:
        """The step of the slowest rank: the others wait for it at the experts."""
        return max(self._seconds(batch) for batch in batches if batch.tokens)

    def _seconds(self, batch: StepBatch) -> float:
        seconds = self.model.seconds(step_of(batch)) + batch.tiles * self.tile_seconds
        if self.draft is not None and batch.decode:
            seconds += self.draft(batch)
        return seconds


def step_of(batch: StepBatch) -> Step:
    """The planner's step for a batch."""
    if batch.checked > 1 and batch.decode:
        return _checking(batch)
    prompt = sum(chunk.new for chunk in batch.chunks)
    length = cached = 0.0
    if prompt:
        cached = round(sum(chunk.new * chunk.cached for chunk in batch.chunks) / prompt)
        length = cached + round(sum(chunk.new * chunk.new for chunk in batch.chunks) / prompt)
    return Step(
        decode=batch.decode * batch.checked,
        context=batch.context / batch.decode if batch.decode else 1.0,
        prompt_tokens=prompt,
        prompt_length=length,
        prompt_cached=cached,
        logit_rows=batch.rows_of_logits,
    )


def _checking(batch: StepBatch) -> Step:
    """The step that checks drafts: each sequence is a chunk of its last and its drafted tokens after its cache.

    So its cache is read once for all of them, and the head runs for each.
    """
    mean = batch.context // batch.decode - 1
    drafted = Chunk(batch.decode * batch.checked, mean, False)
    new = sum(chunk.new for chunk in batch.chunks) + drafted.new
    cached = round((sum(chunk.new * chunk.cached for chunk in batch.chunks) + drafted.new * mean) / new)
    length = cached + round((sum(chunk.new**2 for chunk in batch.chunks) + drafted.new * batch.checked) / new)
    return Step(prompt_tokens=new, prompt_length=length, prompt_cached=cached, logit_rows=batch.rows_of_logits)
