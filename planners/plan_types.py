"""Stage 6's type: `Plan`, the stable document that `l4spec plan --format json` prints.

Bytes, FLOPs, parameters and tokens are exact integers in base units. What could not be known is null, never a guess.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from l4spec.options import Mode
from l4spec.sharding.layout import Layout

Objective = Literal["fastest", "cheapest", "max-context", "min-gpus", "max-free-memory"]
ChosenBy = Literal["time", "memory", "given"]
Origin = Literal["exact", "calibrated"]
Resource = Literal["compute", "memory", "links"]
"""What bounds a step."""


class Frozen(BaseModel):
    """Base of a plan's parts: immutable, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Params(Frozen):
    """Parameter counts. `active` is what one text token's forward pass uses, embedding table and head counted whole."""

    total: int
    active: int
    active_without_embedding: int
    active_with_vision: int
    by_part: dict[str, int]
    active_by_part: dict[str, int]
    by_layer: tuple["LayerParams", ...]


class LayerParams(Frozen):
    """Equal blocks of the language model: which layers, how many, and the parameters of one."""

    layers: tuple[int, ...]
    attention: str
    ffn: str
    total: int
    active: int


class Flops(Frozen):
    """`model_flops`: what the mathematics needs; a multiply-add is 2, only attended pairs and chosen experts count.

    `forward_per_token`: text matmuls and head for one token, without attention pairs. `prefill`: the whole batch over
    the planned context with logits at the last position only. `decode`: one token per sequence whose own token is the
    last of the context. `train_step`: 3 x the forward pass with all logits, no recompute. `vision_per_tile`: tower,
    adapter and projector for one image tile.
    """

    forward_per_token: int
    attention_per_pair: int
    prefill: int
    decode: int
    train_step: int
    vision_per_tile: int | None


class CacheLayer(Frozen):
    """Layers that keep the same cache: their law and what one of them keeps per sequence at the planned context."""

    label: str
    kind: str
    law: Literal["full", "chunk", "window", "state"]
    bound: int | None
    num_layers: int
    bytes_per_token_per_layer: int
    tokens_kept: int
    bytes: int


class KvCache(Frozen):
    """The whole model's cache for the planned batch and context under the engine's policy, before any sharding."""

    bytes: int
    bytes_per_token_unbounded: int
    bytes_per_token_global: int
    policy: str
    policy_explained: str
    dtype: str
    context: int
    batch: int
    layers: tuple[CacheLayer, ...]


class Weights(Frozen):
    """The whole model's weights under the quantization scheme; `refusals` names tensors that it cannot pack and why."""

    bytes: int
    scale_bytes: int
    scheme: str
    by_part: dict[str, int]
    refusals: tuple[str, ...]


class MemoryTerm(Frozen):
    """One term of a device's memory: what it is, whether a formula or a calibration gives it, its spread and source."""

    name: str
    bytes: int
    origin: Origin
    spread: tuple[int, int] | None = None
    source: str
    arithmetic: str = ""


class DeviceMemory(Frozen):
    """The fullest device. `capacity_bytes` is null when no GPUs are given; `total_bytes` includes reserved terms."""

    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    reserved_bytes: int
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    total_bytes: int
    capacity_bytes: int | None
    capacity_source: str = ""
    headroom_bytes: int | None
    terms: tuple[MemoryTerm, ...]
    unknown: tuple[str, ...] = ()
    """Terms of the engine that nobody measured for this version and layout: they are in no total."""


class LayoutRow(Frozen):
    """A legal layout and what it gives. Times are estimates of what fits; null where none is known."""

    layout: Layout
    fits: bool
    total_bytes: int
    max_context: int
    max_batch: int
    ttft_seconds: float | None = None
    time_per_output_token_seconds: float | None = None
    tokens_per_second_per_gpu: float | None = None
    step_time_seconds: float | None = None


class IllegalLayout(Frozen):
    """A layout that the model does not allow, and why."""

    layout: Layout
    reason: str


class Communication(Frozen):
    """Bytes that one device sends per token of its batch, per mesh axis, by ring collectives of bf16 activations.

    An all-gather is of fp32 logits: of a prompt only the last token's.

    `payload_bytes_per_token` is what it hands in. The tiers say how much goes to devices of its host and to other
    hosts, on average over all devices; null without GPUs. Along cp what is sent grows with the context:
    `bytes_per_sequence` is what the busiest device sends of one sequence in all, and `bytes_per_token` divides that by
    the tokens that a device runs of it, rounded up.
    """

    axis: Literal["tp", "cp", "ep", "pp", "dp"]
    collective: str
    bytes_per_token: int
    payload_bytes_per_token: int | None = None
    intra_host_bytes_per_token: int | None = None
    inter_host_bytes_per_token: int | None = None
    bytes_per_sequence: int | None = None
    arithmetic: str


class CollectiveTraffic(Frozen):
    """One kind of collective of one device in a training step, all its calls together.

    `payload_bytes` are handed in (of an all-gather: taken out), `ring_bytes` sent by a ring over `ranks` ranks.
    `dp_ep` are the ranks of dp and ep together.
    """

    axis: Literal["tp", "cp", "ep", "pp", "dp", "dp_ep"]
    collective: str
    what: str
    ranks: int
    calls: int
    payload_bytes: int
    ring_bytes: int
    intra_host_bytes: int | None
    inter_host_bytes: int | None


class TrainTraffic(Frozen):
    """What a device of pipeline stage `stage`, the one that sends the most, sends in one optimizer step.

    `tokens` and `micro_batches` are those of its data-parallel rank. `planners.collectives.training_traffic` states
    every convention.
    """

    stage: int
    tokens: int
    micro_batches: int
    rows: tuple[CollectiveTraffic, ...]


class Suggestion(Frozen):
    """A change that would make the plan fit, each found by planning it; `command` is what to type."""

    change: str
    command: str
    total_bytes: int
    max_context: int


@dataclass(frozen=True, slots=True)
class KindLatency:
    """All layers of one kind in one step. Each resource at its published peak; the bound is the longest of them.

    `estimate_seconds` is null where no factors are fitted. A plain dataclass: searches make millions of them.
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
        """From the seconds of each resource."""
        bounded_by: Resource = "compute" if compute >= memory and compute >= links else "memory"
        if links > compute and links > memory:
            bounded_by = "links"
        return cls(name, count, compute, memory, links, max(compute, memory, links), bounded_by, estimate)

    def __add__(self, other: "KindLatency") -> "KindLatency":
        """Layers of the same name together."""
        a, b = self.estimate_seconds, other.estimate_seconds
        return KindLatency.of(
            self.name,
            self.count + other.count,
            self.compute_seconds + other.compute_seconds,
            self.memory_seconds + other.memory_seconds,
            self.links_seconds + other.links_seconds,
            None if a is None or b is None else a + b,
        )


@dataclass(frozen=True, slots=True)
class StepLatency:
    """One step of the busiest device: a roofline that nothing can beat, and what an engine is expected to take."""

    bound_seconds: float
    bounded_by: Resource
    estimate_seconds: float | None
    by_kind: tuple[KindLatency, ...]

    @classmethod
    def of(cls, kinds: tuple[KindLatency, ...], constant: float = 0.0) -> "StepLatency":
        """Of kinds that follow each other; `constant` is what the engine spends a step above their estimates."""
        shares: dict[Resource, float] = {"compute": 0.0, "memory": 0.0, "links": 0.0}
        for kind in kinds:
            shares[kind.bounded_by] += kind.bound_seconds
        estimates = [kind.estimate_seconds for kind in kinds]
        estimate = None if None in estimates else sum(filter(None, estimates), constant)
        bounded_by = max(shares, key=lambda resource: shares[resource])
        return cls(sum(kind.bound_seconds for kind in kinds), bounded_by, estimate, kinds)


class LatencyError(Frozen):
    """How wrong an estimate was on published rows left out of the fit: absolute relative errors."""

    metric: str
    median: float
    p90: float
    num_rows: int
    num_sources: int


class Latency(Frozen):
    """Time, in three layers: bounds, estimates, and the estimates' error. Null fields say why in `reason` or `notes`.

    Without output tokens, a first token takes the prefill of one prompt of the whole context, and an output token the
    decode step of the whole batch at that context. With them, prompts of the remaining context arrive in a closed loop
    of `concurrency` clients. Throughput counts output tokens. With `by_module`, times are of our module on a calibrated
    machine, where nobody queues: prompts are read at once, then all decode together.
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
    time_per_output_token_seconds: float | None = None
    time_per_output_token_bound_seconds: float | None = None
    tokens_per_second_per_user: float | None = None
    tokens_per_second_per_gpu: float | None = None
    step_time_seconds: float | None = None
    step_time_bound_seconds: float | None = None
    mfu: float | None = None
    model_flops_per_second_per_gpu: float | None = None
    train_tokens_per_second: float | None = None
    train_tokens: int | None = None
    gpu_hours: float | None = None
    usd_per_gpu_hour: float | None = None
    usd: float | None = None
    usd_per_million_output_tokens: float | None = None
    errors: tuple[LatencyError, ...] = ()
    sources: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ClusterInfo(Frozen):
    """The GPUs that the plan is for."""

    text: str
    hardware: str
    num_gpus: int
    num_hosts: int
    gpus_per_host: int


class DeploymentInfo(Frozen):
    """What was asked for, every default filled in. `max_context` is the engine's limit where one was given.

    `chosen_by`: whether the layout was chosen by estimated time or by memory, or was the only one asked for.
    """

    mode: Mode
    context: int
    context_origin: Literal["given", "default"]
    batch: int
    quantization: str
    kv_dtype: str
    engine: str
    objective: Objective
    num_tiles: int
    prefill_chunk: int
    memory_fraction: float
    max_context: int | None = None
    optimizer: str | None = None
    zero_stage: int | None = None
    activation_checkpointing: str | None = None
    micro_batch: int | None = None
    gradient_bytes: int | None = None
    precision: str | None = None
    chosen_by: ChosenBy = "given"
    as_published: bool = False
    """Whether `quantization` is the format that the spec says its published weights have."""


class Estimates(Frozen):
    """The estimated fields that parameter counts rest on, and those (these among them) that any other number does."""

    params: tuple[str, ...] = ()
    work: tuple[str, ...] = ()


class Plan(Frozen):
    """What a model costs and whether it fits. `estimated` lists the fields that nobody has published.

    `request` are the options that were given, as `PlanRequest` takes them: made of it, the plan is the same again.
    """

    l4spec_plan: Literal[1] = 1
    model: str
    estimated: tuple[str, ...]
    estimates: Estimates = Estimates()
    request: dict[str, Any] = {}
    deployment: DeploymentInfo
    cluster: ClusterInfo | None
    params: Params
    flops: Flops
    weights: Weights
    kv_cache: KvCache
    layout: Layout
    layouts: tuple[LayoutRow, ...]
    illegal_layouts: tuple[IllegalLayout, ...]
    memory_per_device: DeviceMemory
    communication: tuple[Communication, ...]
    train_traffic: TrainTraffic | None = None
    fits: bool | None
    reasons: tuple[str, ...]
    max_context: int | None
    max_batch: int | None
    suggestions: tuple[Suggestion, ...]
    latency: Latency | None = None
