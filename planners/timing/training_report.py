"""The `latency` section of a training plan: step time, utilisation, GPU-hours and cost."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from l4spec.sharding.layout import Layout
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import data_collectives
from planners.counts.flops import count_flops
from planners.counts.weights import scheme_of
from planners.deployment import Deployment
from planners.device.frozen_base import unpacked_of
from planners.device.stages import PipelineStage, stages
from planners.device.trainer_memory import is_known
from planners.device.training_state import RUN, TrainSetting, updated_bytes
from planners.latency_types import Latency
from planners.timing.efficiency import TrainingEfficiency, training_efficiency
from planners.timing.likeness import errors_like, training_conditions
from planners.timing.machine import Machine, link_seconds
from planners.timing.training_step import TrainLoad, TrainModel

_SECONDS_PER_HOUR = 3600
_SLOW = "gradients and weights keep the links busy for longer than computation could hide: the step waits for them"
_HIDDEN = (
    "of gradients and weights between data-parallel ranks, {:.0f} % of one exchange a step is taken as not hidden, and "
    "none of what ZeRO 2 and 3 send in other micro-batches"
)
_CASTS = "matmuls of what the scheme {} packs are in {}: attention scores and the rest in bf16, as are weights kept"
_ADAPTERS = "times leave out the adapters' own products: nobody published them apart"
_UNPACKED = "no fitted run has packed weights: unpacking {} is timed by the bytes that it moves"
_OWN_MEMORY = "nobody published the memory of {}: it is planned as that of l4spec's own runtime"

_NOT_RUN = "planned, and not run by l4spec.distribute: {}"


@dataclass(frozen=True, slots=True)
class TimedTraining:
    """Training on a machine with a layout, to be timed."""

    deployment: Deployment
    machine: Machine
    layout: Layout

    @property
    def train(self) -> TrainSetting:
        """Memory settings of training."""
        assert self.deployment.setting.train is not None
        return self.deployment.setting.train

    @property
    def model(self) -> TrainModel:
        """The model with the number formats of its matmuls and the factors of the hardware."""
        scheme = scheme_of(self.train.matmuls)
        return TrainModel(self.deployment.graph, scheme, self.machine, training_efficiency(self.machine.hardware.name))

    @property
    def load(self) -> TrainLoad:
        """One step."""
        return with_the_rest(self.passes, self.model, self.train, self.layout, self._placed)

    @property
    def passes(self) -> TrainLoad:
        """The passes of a step, the same for every ZeRO stage."""
        layout, train = self.layout, self.train
        return TrainLoad(
            sequences=self.deployment.batch,
            length=self.deployment.context,
            num_devices=layout.num_devices,
            tp=layout.tp,
            pp=layout.pp,
            ep=layout.ep,
            cp=layout.cp,
            ep_span=layout.ep * layout.cp * layout.tp,
            virtual_stages=train.virtual_stages,
            micro_batch=train.micro_batch,
            checkpointing=train.checkpointing,
            sequence_parallel=train.sequence_parallel,
            trainer=train.trainer or "megatron",
            matmul_format=train.precision if train.precision == "mxfp8" else None,
            frozen_weights=train.lora is not None,
            unpacked_bytes=self._unpacked_bytes,
        )

    def seconds_of_passes(self) -> float | None:
        """Estimated seconds of the passes of a step: computing, its exchanges, the bubble; None without factors."""
        model = self.model
        if model.efficiency is None or self.machine.peak(self.train.peak_dtype) is None:
            return None
        return model.time(self.passes).estimate_seconds

    def seconds_after_passes(self) -> float:
        """Estimated seconds of the optimizer, and of gradients and weights that nothing hides."""
        return self.model.after_passes(self.load)

    @property
    def _placed(self) -> tuple[PipelineStage, ...]:
        """The stages of the pipeline that differ."""
        setting, layout = self.deployment.setting, self.layout
        return stages(setting.graph, setting.scheme, layout.tp, layout.ep, layout.pp, self.train.virtual_stages)

    @property
    def _unpacked_bytes(self) -> int:
        """Bytes that one pass over packed weights moves, on the device that has the most."""
        graph, base, layout = self.deployment.graph, self.train.base, self.layout
        if base is None:
            return 0
        return max(unpacked_of(graph, base, layout, stage.layers).moved for stage in self._placed)

    def step_seconds(self, passes: float) -> float:
        """Estimated seconds of a step whose passes take this long: no step is shorter than what its links need."""
        load = self.load
        return max(passes + self.model.after_passes(load), load.shared_seconds)


def with_the_rest(
    load: TrainLoad, model: TrainModel, train: TrainSetting, layout: Layout, placed: Iterable[PipelineStage]
) -> TrainLoad:
    """The load of a step's passes with what follows them: each of the device with the most, of the stages `placed`."""
    tokens, once = StepTokens.of(train, layout, load.length, load.sequences), replace(train, zero_stage=1)
    updated, shared, sent_once = 0, 0.0, 0.0
    for stage in placed:
        updated = max(updated, updated_bytes(model.graph, train, layout, stage))
        of_stage = _seconds_of_data(model, train, layout, tokens, stage)
        shared = max(shared, of_stage)
        if train.zero_stage != once.zero_stage:
            of_stage = _seconds_of_data(model, once, layout, tokens, stage)
        sent_once = max(sent_once, of_stage)
    return replace(load, updated_bytes=updated, shared_seconds=shared, once_seconds=sent_once)


def _seconds_of_data(
    model: TrainModel, train: TrainSetting, layout: Layout, tokens: StepTokens, stage: PipelineStage
) -> float:
    """Seconds that links need for gradients and weights: no step is shorter, however well that is hidden."""
    sent = data_collectives(model.graph, train, layout, tokens, stage)
    return sum(link_seconds(model.machine, layout, each) for each in sent)


def train_latency(deployment: Deployment, machine: Machine, layout: Layout) -> Latency:
    """Time, rate, hours and cost of training steps with the plan's layout."""
    timed = TimedTraining(deployment, machine, layout)
    train, model, load = timed.train, timed.model, timed.load
    factors = model.efficiency
    if machine.peak(train.peak_dtype) is None:
        return Latency(reason=f"no dense {train.peak_dtype} peak is published for {machine.hardware.name}")
    time = model.time(load)
    fitted = factors is not None and time.estimate_seconds is not None
    what = "training runs" if factors is None else f"training runs in {train.precision}"
    section = Latency(
        reason=None if fitted else f"no published {what} on {machine.hardware.name} are fitted: bounds only",
        train=time,
        step_time_bound_seconds=time.bound_seconds,
        cautions=(*_idle(load), *_of_adapters(train)),
        notes=_notes(train, layout, factors),
    )
    if factors is None or not fitted:
        return section
    beyond = _beyond(factors, layout.num_devices, train)
    estimate, after = time.estimate_seconds or 0.0, model.after_passes(load)
    seconds = max(estimate, load.shared_seconds)
    slow = load.shared_seconds > estimate - after
    remarks = {
        "after_passes_seconds": after,
        "extrapolated": bool(beyond),
        "cautions": (*((_SLOW,) if slow else ()), *section.cautions, *beyond),
        "notes": section.notes[1:] if slow else section.notes,  # links are not hidden then
    }
    return section.model_copy(update=remarks | _trained(timed, factors, seconds))


def _notes(train: TrainSetting, layout: Layout, factors: TrainingEfficiency | None) -> tuple[str, ...]:
    """Assumptions: hidden communication, casts of fp8, memory of a trainer that is not known, and what does not run."""
    hidden = _HIDDEN.format(100 * (factors.dp if factors else 0.0))
    packed = train.fp8_scheme or train.precision
    casts = () if train.precision == "bf16" else (_CASTS.format(packed, train.precision),)
    own = () if is_known(train.trainer) else (_OWN_MEMORY.format(train.trainer),)
    planned = {
        "context parallelism": layout.cp > 1,
        "virtual stages": train.virtual_stages > 1,
        "adapters": train.lora is not None,
        f"matmuls in {train.precision}": train.precision not in RUN,
    }
    not_run = " and ".join(name for name, is_asked in planned.items() if is_asked)
    return hidden, *casts, *own, *((_NOT_RUN.format(not_run),) if not_run else ())


def _of_adapters(train: TrainSetting) -> tuple[str, ...]:
    """Cautions on work of adapters and packed weights that no estimate has."""
    adapters = () if train.lora is None else (_ADAPTERS,)
    return (*adapters, _UNPACKED.format(train.base.name)) if train.base else adapters


def _idle(load: TrainLoad) -> tuple[str, ...]:
    """Cautions on idle work: data-parallel ranks without a sequence or with one fewer, most of a pipeline's time."""
    ranks, notes = load.ranks, []
    if load.sequences < ranks:
        without = ranks - load.sequences
        notes.append(f"the batch is small: {without:,} of {ranks:,} data-parallel ranks are idle, without a sequence")
    elif fewer := -load.sequences % ranks:
        notes.append(
            f"{load.sequences:,} sequences are no multiple of {ranks:,} data-parallel ranks: {fewer:,} of them wait, "
            f"with one fewer than {load.sequences_of_rank:,}"
        )
    if load.bubble > 1:
        share = load.bubble / (1 + load.bubble)
        notes.append(f"the batch is small: {load.pp} pipeline stages are idle for {100 * share:.0f} % of a step")
    return tuple(notes)


def _beyond(factors: TrainingEfficiency, num_devices: int, train: TrainSetting) -> tuple[str, ...]:
    """Note on an estimate for more devices than any fitted run had."""
    most = factors.most_devices.get(train.peak_dtype)
    if most is None or num_devices <= most:
        return ()
    return (
        f"fitted on {train.peak_dtype} runs of at most {most:,} devices: "
        f"{num_devices:,} are an extrapolation ({factors.name})",
    )


def _trained(timed: TimedTraining, factors: TrainingEfficiency, seconds: float) -> dict[str, object]:
    model, load, request = timed.model, timed.load, timed.deployment.request
    flops = count_flops(model.graph, context=load.length, batch=load.sequences, lora=timed.train.lora).train_step
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
