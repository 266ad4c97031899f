"""The `latency` section of a training plan: step time, utilisation, GPU-hours and cost."""

from l4spec.sharding.layout import Layout
from planners.flops import count_flops
from planners.latency.efficiency import TrainingEfficiency, training_efficiency
from planners.latency.machine import Machine
from planners.latency.section_parts import Wanted, latency_errors, step_latency
from planners.latency.step import StepTime
from planners.latency.train_step import TrainLoad, TrainModel
from planners.memory import Setting
from planners.plan_types import Latency

_SECONDS_PER_HOUR = 3600


def train_latency(setting: Setting, machine: Machine, layout: Layout, wanted: Wanted) -> Latency:
    """Time, rate, hours and cost of training steps with the plan's layout."""
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
        train=step_latency(time),
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
        "errors": latency_errors(found.errors),
        "sources": (found.source,),
    }
