"""The `latency` section of a plan: what its layout takes, bound and estimate, for serving or for training."""

from dataclasses import dataclass

from planners.catalog.base import Entry
from planners.cluster import Cluster
from planners.flops import count_flops
from planners.latency.demand import Step
from planners.latency.efficiency import (
    FitError,
    TrainingEfficiency,
    training_efficiency,
)
from planners.latency.machine import Machine
from planners.latency.serving import Load, serve
from planners.latency.step import KindTime, StepModel, StepTime, step_model
from planners.latency.train_step import TrainLoad, TrainModel
from planners.memory import Setting
from planners.plan_types import KindLatency, Latency, LatencyError, Layout, StepLatency

_SECONDS_PER_HOUR = 3600
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user asks about time: tokens a sequence, sequences, and what only a price or a training run needs.

    `output_tokens` are part of the context; `max_batch` sequences of the whole deployment fit at once.
    """

    context: int
    batch: int
    output_tokens: int | None = None
    max_batch: int = 0
    train_tokens: int | None = None
    usd_per_gpu_hour: float | None = None


def plan_latency(setting: Setting, cluster: Cluster, layout: Layout, wanted: Wanted) -> Latency:
    """Time of the chosen layout on the cluster. What is not known is null, and says why."""
    machine = Machine(cluster.hardware, cluster.gpus_per_host)
    if setting.train is not None:
        return _training(setting, machine, layout, wanted)
    model = step_model(
        setting.graph,
        setting.scheme,
        layout,
        machine=machine,
        kv_dtype_bytes=setting.kv_dtype_bytes,
        engine=setting.engine.name,
    )
    if model.unknown:
        return Latency(reason=model.unknown)
    return _serving(model, setting.engine, layout, wanted)


def _serving(model: StepModel, engine: Entry, layout: Layout, wanted: Wanted) -> Latency:
    ranks = layout.dp * layout.ep
    sequences = -(-wanted.batch // ranks)
    micro = -(-sequences // layout.pp)
    prompt = max(1, wanted.context - (wanted.output_tokens or 0))
    decode = model.time(Step(decode=micro, context=wanted.context))
    prefill = model.time(Step(prompt_tokens=prompt, prompt_length=prompt))
    found = model.efficiency
    section = Latency(
        reason=None if found else f"no published measurements of '{engine.name}': bounds only",
        prompt_tokens=prompt,
        output_tokens=wanted.output_tokens,
        concurrency=wanted.batch,
        prefill=_step(prefill),
        decode=_step(decode),
        ttft_bound_seconds=prefill.bound,
        time_per_output_token_bound_seconds=decode.bound,
        notes=_notes(model, layout),
    )
    if found is None:
        return section
    ttft, tpot, rate = _service(model, wanted, prompt, micro, (prefill.estimate or 0.0, decode.estimate or 0.0))
    per_gpu = rate * ranks * (layout.pp if wanted.output_tokens else 1) / layout.num_devices
    told = {
        "factors": found.name,
        "extrapolated": model.machine.hardware.name not in found.hardware,
        "ttft_seconds": ttft,
        "time_per_output_token_seconds": tpot,
        "tokens_per_second_per_user": 1 / tpot,
        "tokens_per_second_per_gpu": per_gpu,
        "usd_per_gpu_hour": wanted.usd_per_gpu_hour,
        "usd_per_million_output_tokens": _price(wanted.usd_per_gpu_hour, per_gpu),
        "errors": _errors(found.errors),
        "sources": (found.source,),
    }
    return section.model_copy(update=told)


def _service(
    model: StepModel, wanted: Wanted, prompt: int, micro: int, alone: tuple[float, float]
) -> tuple[float, float, float]:
    """Time to first token, time per output token, and output tokens per second of one rank's micro-batch."""
    layout = model.layout
    if wanted.output_tokens is None:
        prefill, tpot = alone
        ttft = prefill + (model.efficiency.request if model.efficiency else 0.0)
        return ttft, tpot, wanted.batch / (layout.dp * layout.ep) / tpot
    capacity = max(1.0, wanted.max_batch / (layout.dp * layout.ep * layout.pp))
    served = serve(model, Load(prompt, wanted.output_tokens, micro, capacity))
    return served.ttft, served.tpot, served.requests_per_second * wanted.output_tokens


def _notes(model: StepModel, layout: Layout) -> tuple[str, ...]:
    notes = []
    hardware, found = model.machine.hardware.name, model.efficiency
    if found is not None and hardware not in found.hardware:
        notes.append(
            f"{found.name}'s factors were fitted on {', '.join(found.hardware)}: an extrapolation to {hardware}"
        )
    if layout.pp > 1:
        notes.append(f"a batch is cut into {layout.pp} micro-batches; sending between stages is not counted")
    if model.graph.model.vision is not None:
        notes.append("image tiles are not timed")
    return tuple(notes)


def _training(setting: Setting, machine: Machine, layout: Layout, wanted: Wanted) -> Latency:
    train = setting.train
    assert train is not None
    found = training_efficiency(machine.hardware.name)
    model = TrainModel(setting.graph, setting.scheme, machine, found)
    if machine.peak(setting.scheme.table.compute_dtype) is None:
        return Latency(
            reason=f"no dense {setting.scheme.table.compute_dtype} peak is published for {machine.hardware.name}"
        )
    load = TrainLoad(
        sequences=wanted.batch,
        length=wanted.context,
        num_devices=layout.num_devices,
        tp=layout.tp,
        pp=layout.pp,
        ep=layout.ep,
        ep_span=layout.ep * layout.tp,
        micro_batch=train.micro_batch,
        recompute=1.0 if train.checkpointing == "full" else 0.0,
    )
    time = model.time(load)
    section = Latency(
        reason=None if found else f"no published training runs on {machine.hardware.name} are fitted: bounds only",
        train=_step(time),
        step_time_bound_seconds=time.bound,
        notes=("gradient and weight collectives of data parallelism are taken as hidden behind computation",),
    )
    return section if found is None else section.model_copy(update=_trained(model, found, load, time, wanted))


def _trained(
    model: TrainModel, found: TrainingEfficiency, load: TrainLoad, time: StepTime, wanted: Wanted
) -> dict[str, object]:
    seconds = time.estimate
    assert seconds is not None
    flops = count_flops(model.graph, context=load.length, batch=load.sequences).train_step
    rate = flops / seconds / load.num_devices
    tokens_per_second = load.sequences * load.length / seconds
    hours = None
    if wanted.train_tokens is not None:
        hours = wanted.train_tokens / tokens_per_second * load.num_devices / _SECONDS_PER_HOUR
    price = wanted.usd_per_gpu_hour
    return {
        "factors": found.name,
        "step_time_seconds": seconds,
        "mfu": rate / (model.machine.peak(model.scheme.table.compute_dtype) or 1.0),
        "model_flops_per_second_per_gpu": rate,
        "train_tokens_per_second": tokens_per_second,
        "train_tokens": wanted.train_tokens,
        "gpu_hours": hours,
        "usd_per_gpu_hour": price,
        "usd": None if hours is None or price is None else hours * price,
        "errors": _errors(found.errors),
        "sources": (found.source,),
    }


def _price(usd_per_gpu_hour: float | None, tokens_per_second_per_gpu: float) -> float | None:
    """Dollars of a million output tokens at full use."""
    if usd_per_gpu_hour is None:
        return None
    return usd_per_gpu_hour * _MILLION / (tokens_per_second_per_gpu * _SECONDS_PER_HOUR)


def _step(time: StepTime) -> StepLatency:
    return StepLatency(
        bound_seconds=time.bound,
        bounded_by=time.bounded_by,
        estimate_seconds=time.estimate,
        by_kind=tuple(_kind(kind) for kind in time.kinds),
    )


def _kind(kind: KindTime) -> KindLatency:
    return KindLatency(
        name=kind.name,
        count=kind.count,
        compute_seconds=kind.compute,
        memory_seconds=kind.memory,
        links_seconds=kind.links,
        bound_seconds=kind.bound,
        bounded_by=kind.bounded_by,
        estimate_seconds=kind.estimate,
    )


def _errors(errors: tuple[FitError, ...]) -> tuple[LatencyError, ...]:
    return tuple(LatencyError(**error.model_dump()) for error in errors)
