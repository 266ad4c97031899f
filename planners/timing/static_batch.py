"""Time of a static batch: equal requests, all sent at once, until the last token of all.

    seconds = request + prefill of all prompts + steps * (step + sequence * batch + decode step at the mean context)

Prefill and decoding have shares of the matmul peak of their own. Requests that the cache has no room for follow in
further waves. Factors were fitted engine by engine and GPU by GPU on batches (`planners/catalog/static_batch`).
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from l4spec.catalog.entry import Entry, Source
from l4spec.layers.base import AsTuple, Spec
from l4spec.units import Seconds
from planners.catalog.loader import find_shipped, load
from planners.timing.layer_demand import Step
from planners.timing.resources import ResourceSeconds
from planners.timing.step import StepModel

Share = Annotated[float, Field(gt=0, le=1.5)]
"""A share of a peak. Slightly above 1 is possible where the bound counts traffic that caches absorb."""


@dataclass(frozen=True, slots=True)
class StaticBatch:
    """`batch` requests of `prompt` and `output` tokens; `capacity` sequences of full length fit the cache at once."""

    batch: int
    prompt: int
    output: int
    capacity: float = float("inf")

    @property
    def waves(self) -> float:
        """Batch over capacity, at least 1: the (fractional) number of waves, each of which starts decoding again."""
        return max(1.0, self.batch / max(self.capacity, 1.0))

    @property
    def decoding(self) -> float:
        """Sequences that decode at once."""
        return self.batch / self.waves


class StaticBatchFactors(Spec):
    """Shares of the published peaks that an engine reaches on one GPU, and constant times."""

    hardware: str
    memory: Share
    cache: Share
    prefill: Share
    decode: Share
    attention: Share
    links: Share
    collective: Seconds
    block: Seconds
    step: Seconds
    sequence: Seconds
    request: Seconds
    num_rows: Annotated[int, Field(ge=1)]
    """Batches that the factors were fitted on."""

    def seconds(self, model: StepModel, load_: StaticBatch) -> float:
        """The time of a batch. `model.unknown` must be None."""
        sent, steps = load_.batch, load_.output * load_.waves
        prompts = Step(prompt_tokens=sent * load_.prompt, prompt_length=load_.prompt, logit_rows=sent)
        token = Step(decode=load_.decoding, context=load_.prompt + load_.output / 2)
        one = self._pass(model.used(token), self.decode) + self.step + self.sequence * load_.decoding
        return self.request + self._pass(model.used(prompts), self.prefill) + steps * one

    def _pass(self, used: ResourceSeconds, matmul: float) -> float:
        return used.in_turn(self, matmul=matmul, block=self.block)


class StaticBatchEfficiency(Entry):
    """An engine's factors on every GPU that batches were measured on."""

    source: Source
    models: Annotated[tuple[str, ...], AsTuple]
    """Models that the factors were fitted on; batches of others judge."""
    machines: Annotated[tuple[StaticBatchFactors, ...], AsTuple, Field(min_length=1)]

    def find(self, hardware: str) -> StaticBatchFactors | None:
        """The factors on a catalogue GPU; None without measurements."""
        return next((factors for factors in self.machines if factors.hardware == hardware), None)


def static_batch_efficiency(engine: str) -> StaticBatchEfficiency | None:
    """The factors of an engine; None without measured batches."""
    if find_shipped("static_batch", engine) is None:
        return None
    return load("static_batch", StaticBatchEfficiency, engine)
