"""`Plan`: the stable document that `l4spec plan --format json` prints.

Bytes, FLOPs, parameters and tokens are exact integers in base units. Unknown values are null, never guessed.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.options import Mode
from l4spec.sharding.layout import Layout
from l4spec.spec.part import PartOf
from planners.deferred import Deferred
from planners.frozen import Frozen
from planners.plan_views import ShownPlan
from planners.video import VideoInfo

if TYPE_CHECKING:
    from planners.latency_types import Latency
else:
    Latency = Annotated[Any, PartOf("planners.latency_types:Latency")]

Objective = Literal["fastest", "cheapest", "max-context", "min-gpus", "max-free-memory", "simplest"]
BY_TIME: tuple[Objective, ...] = ("fastest", "cheapest")
"""Objectives that compare layouts by time; the others compare memory."""
ChosenBy = Literal["time", "memory", "given"]
Origin = Literal["exact", "calibrated"]


class Params(Frozen):
    """Parameter counts. `active`: parameters that one text token uses, with the whole embedding table and head."""

    total: int
    active: int
    active_without_embedding: int
    active_with_vision: int
    by_part: dict[str, int]
    active_by_part: dict[str, int]
    by_layer: tuple["LayerParams", ...]


class LayerParams(Frozen):
    """Equal blocks of the language model: their layers, their number, and the parameters of one."""

    layers: tuple[int, ...]
    attention: str
    ffn: str
    total: int
    active: int


class Flops(Frozen):
    """FLOPs of the mathematics (`model_flops`): a multiply-add is 2; only attended pairs and chosen experts count.

    `forward_per_token`: text matmuls and head for one token, without attention pairs. `prefill`: the prompts of the
    whole batch (the planned context except output tokens) with logits at the last position only. `decode`: one token
    per sequence whose own token is the last of the context. `train_step`: 3 x the forward pass with all logits, no
    recompute. `vision_per_tile`: tower, adapter and projector for one image tile.
    """

    forward_per_token: int
    attention_per_pair: int
    prefill: int
    decode: int
    train_step: int
    vision_per_tile: int | None


class CacheLayer(Frozen):
    """Layers with equal caches: their law of growth, and one layer's cache per sequence at the planned context.

    A layer with several laws has a row for each; a `compressed` token is an entry made of `bound` tokens.
    """

    label: str
    kind: str
    law: Literal["full", "chunk", "window", "state", "compressed"]
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
    """The model's weights under the quantization scheme; `refusals` are tensors that it cannot pack, with the
    reason.
    """

    bytes: int
    scale_bytes: int
    scheme: str
    by_part: dict[str, int]
    refusals: tuple[str, ...]


class MemoryTerm(Frozen):
    """One term of a device's memory, with its origin (formula or calibration), spread and source."""

    name: str
    bytes: int
    origin: Origin
    spread: tuple[int, int] | None = None
    source: str
    arithmetic: str = ""


class DeviceMemory(Frozen):
    """Memory of the fullest device. `capacity_bytes` is null without GPUs; `total_bytes` includes reserved terms."""

    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    reserved_bytes: int
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    gathered_bytes: int = 0
    total_bytes: int
    capacity_bytes: int | None
    capacity_source: str = ""
    headroom_bytes: int | None
    terms: tuple[MemoryTerm, ...]
    unknown: tuple[str, ...] = ()
    """Terms of the engine without a measurement for this version and layout; they are in no total."""


class HostMemoryUse(Frozen):
    """Model state offloaded to host memory: the routed experts of the first `num_layers` layers, or those layers whole.

    `kv_cache_bytes` counts the caches of whole layers. Rates are in bytes per second, `link_bandwidth` in one
    direction.
    """

    part: Literal["experts", "layers"]
    num_layers: int
    of_layers: int
    weights_bytes: int
    kv_cache_bytes: int
    capacity_bytes: int
    bandwidth: float
    bandwidth_origin: Literal["given", "assumed"]
    link_bandwidth: float


class KeptState(Frozen):
    """Memory settings of training: ZeRO stage, activation checkpointing, and sequences per micro-batch."""

    zero_stage: int
    activation_checkpointing: Checkpointing
    micro_batch: int


class LayoutRow(Frozen):
    """A legal layout with its memory, limits and estimated times. Times are null if it does not fit or none is known.

    `training` are the memory settings of training on this layout. `as_fast`: its time differs from the best one's by no
    more than the median error of the estimate.
    """

    layout: Layout
    fits: bool
    total_bytes: int
    max_context: int
    max_batch: int
    ttft_seconds: float | None = None
    time_per_output_token_seconds: float | None = None
    tokens_per_second_per_gpu: float | None = None
    step_time_seconds: float | None = None
    training: KeptState | None = None
    as_fast: bool = False


class IllegalLayout(Frozen):
    """A layout that the model does not allow, with the reason."""

    layout: Layout
    reason: str


class Communication(Frozen):
    """Bytes that one device sends per token of its batch, per mesh axis, by ring collectives of bf16 activations.

    An all-gather is of fp32 logits, of a prompt only the last token's.

    `payload_bytes_per_token` counts the buffer passed to the collective. The tiers are the bytes sent to devices of its
    host and to other hosts, on average over all devices; null without GPUs. Along cp traffic grows with the context:
    `bytes_per_sequence` is the busiest device's for one sequence, and `bytes_per_token` divides it by the device's
    tokens of the sequence, rounded up.
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

    `payload_bytes` is the size of the buffer passed in (of an all-gather: returned), `ring_bytes` the bytes sent by a
    ring over `ranks` ranks. `dp_ep` are the ranks of dp and ep together, with those of cp `dp_cp` and `dp_ep_cp`.
    """

    axis: Literal["tp", "cp", "ep", "pp", "dp", "dp_ep", "dp_cp", "dp_ep_cp"]
    collective: str
    what: str
    ranks: int
    calls: int
    payload_bytes: int
    ring_bytes: int
    intra_host_bytes: int | None
    inter_host_bytes: int | None


class TrainTraffic(Frozen):
    """Collectives that the busiest device, one of pipeline stage `stage`, sends in one optimizer step.

    `tokens` and `micro_batches` are those of its data-parallel rank. `planners.collectives.training_traffic` states
    every convention.
    """

    stage: int
    tokens: int
    micro_batches: int
    rows: tuple[CollectiveTraffic, ...]


class DraftPlan(Frozen):
    """Decoding with the module of `text.mtp` as draft: its memory on the last stage, and its part of a step.

    `acceptance` are the given shares by position; a step yields `tokens_per_step` tokens, 1 + sum of their products.
    `draft_seconds` is the drafts' part of the estimated `step_seconds`; null without an estimate.
    """

    acceptance: tuple[float, ...]
    tokens_per_step: float
    weights_bytes: int
    kv_cache_bytes: int
    step_seconds: float | None = None
    draft_seconds: float | None = None


class Suggestion(Frozen):
    """A change that would make the plan fit, found by planning it; `command` is the command with it."""

    change: str
    command: str
    total_bytes: int
    max_context: int


class ClusterInfo(Frozen):
    """The GPUs that the plan is for."""

    text: str
    hardware: str
    num_gpus: int
    num_hosts: int
    gpus_per_host: int


class DeploymentInfo(Frozen):
    """The deployment as planned, with every default filled in. `max_context` is the engine's limit if one was given.

    `chosen_by`: the layout was chosen by estimated time, by memory, or was the only one requested.
    """

    mode: Mode
    context: int
    context_origin: Literal["given", "default"]
    batch: int
    batch_origin: Literal["given", "default", "chosen"] = "given"
    """`chosen`: by the planner, for a training step on GPUs."""
    quantization: str
    kv_dtype: str
    engine: str
    objective: Objective
    num_tiles: int
    video: VideoInfo | None = None
    prefill_chunk: int
    memory_fraction: float
    max_context: int | None = None
    optimizer: str | None = None
    zero_stage: int | None = None
    activation_checkpointing: str | None = None
    sequence_parallel: bool | None = None
    trainer: str | None = None
    """The trainer whose time and memory are planned; None: memory of our own runtime, time of Megatron."""
    virtual_stages: int | None = None
    lora_rank: int | None = None
    """Rank of the adapters that are trained; None: all weights are trained."""
    lora_targets: tuple[str, ...] | None = None
    """Groups or names of the tensors that have an adapter."""
    lora_params: int | None = None
    """Parameters of all adapters."""
    micro_batch: int | None = None
    gradient_bytes: int | None = None
    precision: str | None = None
    fp8_matmuls: str | None = None
    """With fp8: the scheme whose rules select the matmuls."""
    left_open: tuple[str, ...] = ()
    """Those of `zero_stage`, `checkpointing` and `micro_batch` that were chosen with the layout."""
    chosen_by: ChosenBy = "given"
    as_published: bool = False
    """True if `quantization` is the format of the published weights, as the spec states it."""


class Estimates(Frozen):
    """Estimated fields that parameter counts depend on (`params`), and those that any number depends on (`work`)."""

    params: tuple[str, ...] = ()
    work: tuple[str, ...] = ()


class Plan(ShownPlan, Frozen):
    """Result of `plan`: counts, memory, layout and time. `estimated` lists the fields without a published value.

    `request` has the options that were given, as `PlanRequest` takes them; planning them again gives the same document.
    """

    l4spec_plan: Literal[1] = 1
    model: str
    estimated: tuple[str, ...]
    estimates: Estimates = Estimates()
    request: dict[str, Any] = Field(default_factory=dict)
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
    host_memory: HostMemoryUse | None = None
    """With `--host-memory`: the state offloaded to the host."""
    communication: tuple[Communication, ...]
    train_traffic: TrainTraffic | None = None
    fits: bool | None
    reasons: tuple[str, ...]
    max_context: int | None
    max_batch: int | None
    suggestions: Deferred[Suggestion]
    latency: Latency | None = None
    module_params: int | None = None
    """Parameters of the spec's modules of multi-token prediction, copies included; in no other number here."""
    drafts: DraftPlan | None = None
    """With `--draft-acceptance`: memory and time of the drafting module, and tokens per step."""
