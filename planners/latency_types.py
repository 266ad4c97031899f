"""The time section of a plan: bounds, estimates and errors, as `l4spec plan --format json` prints them."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import Field

from planners.deferred import Deferred
from planners.frozen import Frozen

NOT_TIMED_UNDER_CP = "the time of prefills divided among ranks (cp) is not estimated"
"""No row of the evidence was measured under cp, so that neither exposed sends nor uneven ranks could be judged."""
Resource = Literal["compute", "memory", "links"]
"""The resource that bounds a step."""


@dataclass(slots=True)  # frozen, it would take five times as long to make
class KindLatency:
    """All layers of one kind in one step. Each resource at its published peak; the bound is the longest of them.

    `estimate_seconds` is null if no factors are fitted. A plain dataclass: searches make millions of them.
    """

    name: str
    count: int
    compute_seconds: float
    memory_seconds: float
    links_seconds: float
    bound_seconds: float
    bounded_by: Resource
    estimate_seconds: float | None

    @classmethod
    def of(
        cls, name: str, count: int, compute: float, memory: float, links: float, estimate: float | None
    ) -> "KindLatency":
        """Construct from the seconds of each resource."""
        bounded_by: Resource = "compute" if compute >= memory and compute >= links else "memory"
        if links > compute and links > memory:
            bounded_by = "links"
        return cls(name, count, compute, memory, links, max(compute, memory, links), bounded_by, estimate)

    def __add__(self, other: "KindLatency") -> "KindLatency":
        """Sum of two rows of the same name."""
        a, b = self.estimate_seconds, other.estimate_seconds
        return KindLatency.of(
            self.name,
            self.count + other.count,
            self.compute_seconds + other.compute_seconds,
            self.memory_seconds + other.memory_seconds,
            self.links_seconds + other.links_seconds,
            None if a is None or b is None else a + b,
        )


@dataclass(slots=True)  # frozen, it would take five times as long to make
class StepLatency:
    """One step of the busiest device: its roofline bound, and the estimate for an engine."""

    bound_seconds: float
    bounded_by: Resource
    estimate_seconds: float | None
    by_kind: tuple[KindLatency, ...]

    @classmethod
    def of(cls, kinds: tuple[KindLatency, ...], constant: float = 0.0) -> "StepLatency":
        """Construct from consecutive kinds; `constant` is the engine's time per step on top of their estimates."""
        shares: dict[Resource, float] = {"compute": 0.0, "memory": 0.0, "links": 0.0}
        for kind in kinds:
            shares[kind.bounded_by] += kind.bound_seconds
        estimates = [kind.estimate_seconds for kind in kinds]
        estimate = None if None in estimates else sum(filter(None, estimates), constant)
        bounded_by = max(shares, key=lambda resource: shares[resource])
        return cls(sum(kind.bound_seconds for kind in kinds), bounded_by, estimate, kinds)


class LatencyError(Frozen):
    """Absolute relative errors of the estimate on published rows left out of the fit.

    `alike` names the properties that the rows share with the deployment (`planners.timing.likeness`), `unlike` those
    that they were not selected by; both are empty if all rows count. With fewer than 20 rows, `p90` is the largest
    error.
    """

    metric: str
    median: float
    p90: float
    num_rows: int
    num_sources: int
    alike: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()


class Conditions(NamedTuple):
    """Properties by which measured rows and deployments are compared.

    `bits` are those of a weight (in training: of the matmuls), `tokens` the length of a sequence, `load` the concurrent
    requests per GPU (0 in training).
    """

    routed: bool
    bits: int
    tokens: float
    gpus: float
    load: float = 0.0


class JudgedRow(NamedTuple):
    """A published row's relative error under factors fitted without its series, and its conditions."""

    metric: str
    error: float
    series: int
    routed: bool
    bits: int
    tokens: float
    gpus: float
    load: float = 0.0

    @property
    def conditions(self) -> Conditions:
        """The conditions under which the row was measured."""
        return Conditions(self.routed, self.bits, self.tokens, self.gpus, self.load)


def _no_errors() -> Deferred[LatencyError]:
    return Deferred.of(())


class TimePart(Frozen):
    """A part of an estimated time, with its cause."""

    what: str
    seconds: float


class Latency(Frozen):
    """Times of a plan: bounds, estimates, and the estimates' error. `reason` or `notes` explain null fields.

    Without output tokens, a first token takes the prefill of one prompt of the whole context, and an output token the
    decode step of the whole batch at that context. With them, prompts of the remaining context arrive in a closed loop
    of `concurrency` clients. Throughput counts output tokens. With `by_module`, times are of our module on a calibrated
    machine, without queueing: prompts are read at once, then all decode together.
    """

    reason: str | None = None
    factors: str | None = None
    extrapolated: bool = False
    by_module: bool = False
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    concurrency: int | None = None
    prefill: StepLatency | None = None
    decode: StepLatency | None = None
    train: StepLatency | None = None
    ttft_seconds: float | None = None
    ttft_bound_seconds: float | None = None
    ttft_parts: tuple[TimePart, ...] = ()
    time_per_output_token_parts: tuple[TimePart, ...] = ()
    time_per_output_token_seconds: float | None = None
    time_per_output_token_bound_seconds: float | None = None
    tokens_per_second_per_user: float | None = None
    tokens_per_second_per_gpu: float | None = None
    step_time_seconds: float | None = None
    after_passes_seconds: float | None = None
    """Part of a training step: the optimizer, and gradients and weights that nothing hides."""
    step_time_bound_seconds: float | None = None
    mfu: float | None = None
    model_flops_per_second_per_gpu: float | None = None
    train_tokens_per_second: float | None = None
    train_tokens: int | None = None
    gpu_hours: float | None = None
    usd_per_gpu_hour: float | None = None
    usd: float | None = None
    usd_per_million_output_tokens: float | None = None
    errors: Deferred[LatencyError] = Field(default_factory=_no_errors)
    sources: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    """Reasons to trust the times less: extrapolations, idle devices, loads that are not served."""
    notes: tuple[str, ...] = ()
