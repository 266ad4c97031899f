"""Scheduler defaults of engines by version, each with its source."""

from typing import Annotated, Literal

from pydantic import Field

from l4spec.catalog.entry import Entry, Source, Sourced
from l4spec.errors import Problem, UserError
from l4spec.layers.base import AsTuple, Spec
from l4spec.units import Bytes
from planners.catalog.loader import load, shipped_names

Count = Annotated[int, Field(ge=1, le=2**30)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PolicyName = Literal["vllm", "sglang", "tensorrt-llm"]


class SmallDevices(Spec):
    """Defaults that differ on devices with less memory."""

    below: Sourced[Bytes]
    """Memory from which on a device counts as large."""
    max_num_seqs: Sourced[Count]
    max_num_batched_tokens: Sourced[Count]


class SchedulerDefaults(Entry):
    """Defaults of one engine's scheduler. Settings that an engine lacks are left out."""

    source: Source
    version: str
    """Version whose defaults these are."""
    policy: PolicyName
    """Rules by which it schedules."""
    engines: Annotated[tuple[str, ...], AsTuple]
    """Catalogue engines that schedule so."""
    order: Sourced[Literal["fcfs", "priority", "longest_prefix"]]
    max_num_seqs: Sourced[Count]
    max_num_batched_tokens: Sourced[Count]
    chunked_prefill: Sourced[bool]
    prefix_caching: Sourced[bool]
    block_size_tokens: Sourced[Count]
    watermark: Sourced[Fraction] | None = None
    overbooking: Sourced[Literal["guaranteed_no_evict", "max_utilization"]] | None = None
    new_token_ratio: Sourced[Fraction] | None = None
    min_new_token_ratio: Sourced[Fraction] | None = None
    new_token_ratio_steps: Sourced[Count] | None = None
    retract_steps: Sourced[Count] | None = None
    most_new_tokens_counted: Sourced[Count] | None = None
    longest_sorted_queue: Sourced[Count] | None = None
    small_devices: SmallDevices | None = None
    notes: Annotated[tuple[str, ...], AsTuple] = ()


def scheduler_of(engine: str) -> SchedulerDefaults:
    """The scheduler's defaults of a catalogue engine. Raises UserError for an engine whose scheduler is not known."""
    known: list[str] = []
    for name in shipped_names("schedulers"):
        entry = load("schedulers", SchedulerDefaults, name)
        if engine in entry.engines:
            return entry
        known += entry.engines
    hint = f"one of: {', '.join(sorted(known))}"
    raise UserError([Problem(f"the scheduler of engine '{engine}' is not known", path="engine", hint=hint)])
