"""The memory of the tightest device in words: every term with its origin and source."""

from typing import TYPE_CHECKING

from planners.device.memory import DeviceUse, Placement, Setting, terms_besides
from planners.plan_types import DeviceMemory, HostMemoryUse, MemoryTerm

if TYPE_CHECKING:
    from planners.device.training_state import TrainSetting


def describe_device(placement: Placement, context: int, batch: int) -> DeviceMemory:
    """The tightest device's memory, term by term."""
    use, setting = placement.tightest(context, batch), placement.setting
    limit = None if placement.budget is None else placement.budget.limit(use)
    terms = (*_named_terms(placement, use), *terms_besides(setting, placement.layout.tp))
    return DeviceMemory(
        weights_bytes=use.weights,
        kv_cache_bytes=use.cache,
        activation_bytes=use.activations,
        reserved_bytes=use.reserved,
        gradient_bytes=use.gradients,
        optimizer_bytes=use.optimizer,
        gathered_bytes=use.gathered,
        total_bytes=use.total,
        capacity_bytes=limit,
        capacity_source="" if placement.budget is None else str(placement.budget),
        headroom_bytes=None if limit is None else limit - use.total,
        terms=tuple(term for term in terms if term.bytes),
        unknown=_unknown(setting, placement.layout.tp),
    )


def describe_host(placement: Placement, context: int, batch: int) -> HostMemoryUse | None:
    """Contents of the host's memory; None if none was given."""
    spill = placement.spill
    if spill is None:
        return None
    return spill.use(placement.layers_on_host(context, batch), context, placement.sequences(batch))


def _unknown(setting: Setting, tp: int) -> tuple[str, ...]:
    """Terms without a measurement: those of the engine, or of driver and context on this hardware."""
    hardware, engine = setting.hardware, setting.engine
    of_engine = () if setting.train else engine.unmeasured_for(tp)
    if engine.memory is not None or hardware is None or hardware.memory.free_before_load is not None:
        return of_engine
    return (*of_engine, "driver_and_context")


def _named_terms(placement: Placement, use: DeviceUse) -> tuple[MemoryTerm, ...]:
    setting, scheme = placement.setting, placement.setting.scheme
    return (
        MemoryTerm(
            name="weights",
            bytes=use.weights - use.module_weights - use.reference_weights,
            origin="exact",
            source=scheme.table.source,
            arithmetic=f"{scheme.name}, {placement.layout}",
        ),
        MemoryTerm(
            name="kv cache",
            bytes=use.cache - use.module_cache,
            origin="exact",
            source=setting.engine.source,
            arithmetic=setting.engine.name,
        ),
        *_module_terms(use),
        *(() if setting.train is None else _training_terms(setting.train, use)),
        _activation_term(placement, use),
    )


def _module_terms(use: DeviceUse) -> tuple[MemoryTerm, ...]:
    """Memory terms of a drafting module."""
    if not use.module_weights and not use.module_cache:
        return ()
    source = "planners/counts/mtp.py"
    return (
        MemoryTerm(
            name="draft weights", bytes=use.module_weights, origin="exact", source=source, arithmetic="text.mtp"
        ),
        MemoryTerm(name="draft cache", bytes=use.module_cache, origin="exact", source=source, arithmetic="text.mtp"),
    )


def _training_terms(train: "TrainSetting", use: DeviceUse) -> tuple[MemoryTerm, ...]:
    """Memory terms of training beside weights: bytes per parameter, times parameters with state on the device."""
    from planners.device.training_state import OPTIMIZER_BYTES

    zero, source = f"ZeRO stage {train.zero_stage}", "planners/device/training_state.py"
    unpacked = f", and one unpacked from {train.base.name}" if train.base else ""
    gradient, state = train.gradient_bytes, OPTIMIZER_BYTES[train.optimizer]
    texts = {
        "gradients": (use.gradients, f"{gradient} B × {use.gradients // gradient:,} parameters of the device, {zero}"),
        "optimizer": (use.optimizer, f"{state} B of {train.optimizer} × {use.optimizer // state:,} parameters, {zero}"),
        "gathered": (use.gathered, f"whole tensors of the blocks at work, {zero}{unpacked}"),
    }
    if use.reference_weights:
        texts["reference weights"] = (
            use.reference_weights,
            f"a frozen copy of the model, shared as its weights, {zero}",
        )
    return tuple(
        MemoryTerm(name=name, bytes=size, origin="exact", source=source, arithmetic=text)
        for name, (size, text) in texts.items()
    )


def _activation_term(placement: Placement, use: DeviceUse) -> MemoryTerm:
    """By formula, unless the engine's own logs show more."""
    term = MemoryTerm(
        name="activations",
        bytes=use.activations,
        origin="exact",
        source="planners/device/activations.py",
        arithmetic=f"widest: {placement.rates.widest}",
    )
    run, profiled = placement.setting.engine.profiling_run, placement.profiled
    if run is None or profiled is None or use.activations not in (profiled.first, profiled.last):
        return term
    return term.model_copy(
        update={
            "origin": "calibrated",
            "spread": (
                round(use.activations * (1 - run.largest_error)),
                round(use.activations * (1 + run.largest_error)),
            ),
            "source": "; ".join(dict.fromkeys((run.bytes_per_logit.source, run.constant.source))),
            "arithmetic": profiled.arithmetic,
        }
    )
