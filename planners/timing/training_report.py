"""The `latency` section of a training plan: step time, utilisation, GPU-hours and cost."""

from math import inf

from l4spec.sharding.layout import Layout
from planners.catalog import quantization as quantization_of
from planners.collectives.training_traffic import StepTokens, train_traffic
from planners.counts.flops import count_flops
from planners.counts.weights import scheme_of
from planners.deployment import Deployment
from planners.device.stages import stages
from planners.latency_types import Latency
from planners.request import PlanRequest
from planners.timing.efficiency import TrainingEfficiency, training_efficiency
from planners.timing.likeness import errors_like, training_conditions
from planners.timing.machine import Machine
from planners.timing.training_step import TrainLoad, TrainModel

_SECONDS_PER_HOUR = 3600
_SLOW = "gradients and weights keep the links busy for longer than computation could hide: the step waits for them"
_HIDDEN = "gradient and weight collectives of data parallelism are taken as hidden behind computation"
_CASTS = ("fp8 is for linear layers of blocks: attention scores, router and head are in bf16, as are the weights kept",)


def train_latency(deployment: Deployment, machine: Machine, layout: Layout) -> Latency:
    """Time, rate, hours and cost of training steps with the plan's layout."""
    train = deployment.setting.train
    assert train is not None
    factors = training_efficiency(machine.hardware.name)
    model = TrainModel(deployment.graph, scheme_of(quantization_of(train.precision)), machine, factors)
    if machine.peak(train.precision) is None:
        return Latency(reason=f"no dense {train.precision} peak is published for {machine.hardware.name}")
    load = TrainLoad(
        sequences=deployment.batch,
        length=deployment.context,
        num_devices=layout.num_devices,
        tp=layout.tp,
        pp=layout.pp,
        ep=layout.ep,
        ep_span=layout.ep * layout.tp,
        micro_batch=train.micro_batch,
        recompute=1.0 if train.checkpointing == "full" else 0.0,
    )
    time = model.time(load)
    fitted = factors is not None and time.estimate_seconds is not None
    what = "training runs" if factors is None else f"training runs in {train.precision}"
    section = Latency(
        reason=None if fitted else f"no published {what} on {machine.hardware.name} are fitted: bounds only",
        train=time,
        step_time_bound_seconds=time.bound_seconds,
        notes=(_HIDDEN, *(_CASTS if train.precision == "fp8" else ())),
    )
    if factors is None or not fitted:
        return section
    beyond = _beyond(factors, layout.num_devices, train.precision)
    waited = _data_parallel_seconds(deployment, machine, layout)
    seconds = max(time.estimate_seconds or 0.0, waited)
    hidden = (_SLOW, *section.notes[1:]) if waited > (time.estimate_seconds or 0.0) else section.notes
    remarks = {"extrapolated": bool(beyond), "notes": (*hidden, *beyond)}
    return section.model_copy(update=remarks | _trained(model, factors, load, seconds, deployment.request))


def _data_parallel_seconds(deployment: Deployment, machine: Machine, layout: Layout) -> float:
    """Seconds that the links are busy with gradients and weights: no step is shorter, however well they are hidden."""
    setting = deployment.setting
    train = setting.train
    assert train is not None
    load = StepTokens.of(train, layout, deployment.context, deployment.batch)
    stage_list = stages(setting.graph, setting.scheme, layout.tp, layout.ep, layout.pp)
    rows = train_traffic(setting.graph, train, layout, load, stage_list, machine.host_size).rows
    inner, outer = machine.link(1) or inf, machine.link(machine.host_size + 1) or inf
    shared = [row for row in rows if row.axis in ("dp", "dp_ep")]
    return sum((row.intra_host_bytes or 0) / inner + (row.inter_host_bytes or 0) / outer for row in shared)


def _beyond(factors: TrainingEfficiency, num_devices: int, precision: str) -> tuple[str, ...]:
    """What the estimate extrapolates: more devices than any fitted run had."""
    most = factors.most_devices.get(precision)
    if most is None or num_devices <= most:
        return ()
    return (
        f"fitted on {precision} runs of at most {most:,} devices: "
        f"{num_devices:,} are an extrapolation ({factors.name})",
    )


def _trained(
    model: TrainModel, factors: TrainingEfficiency, load: TrainLoad, seconds: float, request: PlanRequest
) -> dict[str, object]:
    flops = count_flops(model.graph, context=load.length, batch=load.sequences).train_step
    rate = flops / seconds / load.num_devices
    tokens_per_second = load.sequences * load.length / seconds
    hours = None
    if request.train_tokens is not None:
        hours = request.train_tokens / tokens_per_second * load.num_devices / _SECONDS_PER_HOUR
    price = request.usd_per_gpu_hour
    return {
        "factors": factors.name,
        "step_time_seconds": seconds,
        "mfu": rate / (model.machine.peak(model.scheme.table.compute_dtype) or 1.0),
        "model_flops_per_second_per_gpu": rate,
        "train_tokens_per_second": tokens_per_second,
        "train_tokens": request.train_tokens,
        "gpu_hours": hours,
        "usd_per_gpu_hour": price,
        "usd": None if hours is None or price is None else hours * price,
        "errors": errors_like(factors, training_conditions(model, load)),
        "sources": (factors.source,),
    }
