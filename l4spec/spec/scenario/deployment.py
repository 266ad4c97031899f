"""Deployment of one model: GPUs, precision, layout, engine, replicas and their router."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from l4spec.layers.base import AsTuple, Size, Spec
from l4spec.spec.header import located
from l4spec.spec.quantities import Bandwidth, Duration, Share

Router = Literal["round_robin", "least_loaded", "prefix_aware"]


class SchedulerSpec(Spec):
    """Settings of an engine's scheduler. A setting left out has the default of the engine's version."""

    order: Literal["fcfs", "priority", "longest_prefix"] | None = None
    """Order of waiting requests."""
    max_num_seqs: Size | None = None
    """Most sequences in a step (SGLang: max_running_requests; TensorRT-LLM: max_batch_size)."""
    max_num_batched_tokens: Size | None = None
    """Most new tokens in a step (SGLang: chunked_prefill_size; TensorRT-LLM: max_num_tokens)."""
    chunked_prefill: bool | None = None
    """Split prompts to fill the tokens left in a step."""
    prefix_caching: bool | None = None
    """Reuse the cached prefix that prompts have in common."""
    block_size_tokens: Size | None = None
    """Tokens of a cache block."""
    watermark: Share | None = None
    """Share of blocks that must stay free when a request is admitted."""
    max_model_len: Size | None = None
    """Longest sequence that is served; longer requests are refused."""
    overbooking: Literal["guaranteed_no_evict", "max_utilization"] | None = None
    """TensorRT-LLM: whether a request is admitted only when its longest answer fits."""


class DraftSpec(Spec):
    """Speculative decoding: a draft proposes tokens that the model checks in one step."""

    kind: Literal["mtp", "draft"]
    """mtp: the model's `text.mtp` proposes, or where none is declared one more layer of the model.
    draft: a smaller model on the same GPUs does."""
    spec: str | None = None
    """The draft model, by shipped name or path."""
    acceptance: Annotated[tuple[Share, ...], AsTuple, Field(min_length=1, max_length=64)]
    """For each position the probability that its token is accepted when all before it were."""

    @model_validator(mode="after")
    def _draft_is_named(self) -> Self:
        if (self.kind == "draft") != (self.spec is not None):
            message = "a draft needs its `spec`" if self.kind == "draft" else "a layer of the model needs no `spec`"
            raise located(("spec",), message)
        return self


class Disaggregated(Spec):
    """Prefill and decode on replicas of their own; finished prefills send their cache over."""

    prefill_replicas: Size
    """Replicas that prefill; `replicas` of the model then decode."""
    prefill_gpus: str | None = None
    """GPUs of a prefill replica; by default those of the model."""
    prefill_usd_per_gpu_hour: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Price of a GPU that prefills; by default that of the model's GPUs if they are of the same kind."""
    link: Bandwidth | Literal["infinite"] | None = None
    """Bandwidth between a prefill and a decode replica, as `50 GB/s`; by default that of all devices between hosts."""


class SpecTimes(Spec):
    """Step times from the model's spec, by the planner's step model."""

    kind: Literal["spec"]
    factors: str | None = None
    """A file of fitted factors that `l4spec simulate --fit` wrote; by default the engine's published ones."""


class KernelTimes(Spec):
    """Step times from tables of measured kernels."""

    kind: Literal["kernels"]
    path: Annotated[str, Field(min_length=1)]
    """Prefix of the tables' file names, relative to the scenario's folder."""
    step_overhead: Duration = 0.0
    """Time of a step on top of its kernels."""
    link: Bandwidth | None = None
    """Bandwidth of one device's link, for expert-parallel ranks that exchange tokens; by default the hardware's."""
    link_latency: Duration = 0.0
    """Latency of each exchange, on top of the time of its bytes."""


class FixedTimes(Spec):
    """Constant step times, for comparison with queueing theory and for stages without measurements."""

    kind: Literal["fixed"]
    step: Duration
    """Time of a step."""
    per_token: Duration = 0.0
    """Time that each new token adds."""


StepTimes: TypeAlias = Annotated[SpecTimes | KernelTimes | FixedTimes, Field(discriminator="kind")]


class ModelDeployment(Spec):
    """One model and the servers it runs on."""

    spec: str | None = None
    """Shipped name or path of the model's spec; by default the model's key."""
    set: Annotated[tuple[str, ...], AsTuple] = ()
    """Changes of its fields, as `--set` writes them."""
    gpus: str
    """GPUs of one replica, as 8xH100."""
    replicas: Size = 1
    """Equal servers that one router serves."""
    router: Router = "round_robin"
    """Rule that assigns requests to replicas."""
    quantization: str = "as-published"
    """Scheme of the weights; by default that of the published ones (`stored_as` of the spec), as `l4spec plan` does."""
    kv_dtype: str = "bf16"
    """Number format of the cache."""
    tp: Size | None = None
    """Tensor-parallel degree; chosen by the planner without it."""
    ep: Size | None = None
    """Expert-parallel degree."""
    pp: Size | None = None
    """Pipeline stages."""
    dp: Size | None = None
    """Data-parallel ranks of attention inside a replica; the slowest sets the step."""
    engine: str = "vllm"
    """Engine whose scheduler runs, and whose cache policy and overheads the plan counts."""
    memory_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of device memory; by default the engine's."""
    kv_blocks: Size | None = None
    """Number of KV cache blocks of one rank, as an engine's log gives it; by default those the plan leaves room for."""
    times: StepTimes = SpecTimes(kind="spec")
    """Source of step times."""
    routing: str = "uniform"
    """Load of experts: uniform, power_law:1.2, log_normal:1.0, maverick, or a measurement's file."""
    speculation: DraftSpec | None = None
    """Speculative decoding."""
    disaggregated: Disaggregated | None = None
    """Prefill and decode on separate replicas."""
    scheduler: SchedulerSpec | None = None
    """Settings that differ from the scenario's `scheduler` for this model."""
    shares_gpus_with: str | None = None
    """Key of another model whose GPUs this one runs on too."""
    usd_per_gpu_hour: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Price of a GPU."""
