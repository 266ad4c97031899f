"""The `latency` section of a plan on a calibrated machine: our own module on its CPU, one device, no server."""

from collections.abc import Iterable

from l4spec.layers.declaration import Work
from l4spec.sharding.layout import Layout
from planners.catalog.hardware import Hardware
from planners.deferred import Deferred
from planners.deployment import Deployment
from planners.device.memory import Setting
from planners.latency_types import KindLatency, Latency, StepLatency
from planners.module.error import ERRORS, SOURCE
from planners.module.executed import executed_rows
from planners.module.step_time import ITEM_BYTES, EagerModel
from planners.timing.layer_demand import Routing, kind_name
from planners.timing.step import gathered


def eager_latency(deployment: Deployment, hardware: Hardware, layout: Layout, routing: Routing) -> Latency:
    """Time of our module on the machine. Times without a calibration are null, with the reason."""
    times, setting = hardware.eager, deployment.setting
    assert times is not None
    dtype = setting.scheme.name
    if setting.train is not None:
        return Latency(reason="calibration measures inference, not training")
    if layout.num_devices > 1:
        return Latency(reason=f"{hardware.name} was calibrated as one device")
    if deployment.request.draft_acceptance is not None:
        return Latency(reason="our module drafts nothing while it generates")
    if deployment.request.rate is not None:
        return Latency(reason="our module serves no queue, so requests at a rate are not timed")
    if dtype not in times.pieces:
        known = " or ".join(f"--quantization {name}" for name in times.pieces)
        return Latency(reason=f"{hardware.name} was not calibrated for {dtype}: ask with {known}")
    model = EagerModel(setting.graph, times, dtype, routing)
    prompt, batch, output_tokens = deployment.prompt_tokens, deployment.batch, deployment.output_tokens
    prompts = 1 if output_tokens is None else batch
    prefill = eager_step(model, hardware, Work(prompts, prompt, num_logits=1))
    decode = eager_step(model, hardware, _decode(deployment))
    ttft, tpot = prefill.estimate_seconds or 0.0, decode.estimate_seconds or 0.0
    rate = batch / tpot
    if output_tokens is not None:
        rate = batch * output_tokens / (ttft + (output_tokens - 1) * tpot)
    return Latency(
        factors=hardware.name,
        by_module=True,
        prompt_tokens=prompt,
        output_tokens=output_tokens,
        concurrency=batch,
        prefill=prefill,
        decode=decode,
        ttft_seconds=ttft,
        ttft_bound_seconds=prefill.bound_seconds,
        time_per_output_token_seconds=tpot,
        time_per_output_token_bound_seconds=decode.bound_seconds,
        tokens_per_second_per_user=rate / batch,
        tokens_per_second_per_gpu=rate,
        usd_per_gpu_hour=deployment.request.usd_per_gpu_hour,
        errors=Deferred.of(ERRORS),
        sources=(SOURCE,),
        notes=tuple(_notes(setting, hardware)),
    )


def _decode(deployment: Deployment) -> Work:
    """The step in the middle of the output, or at the end of the context."""
    output_tokens = deployment.output_tokens
    seen = deployment.context if output_tokens is None else deployment.prompt_tokens + output_tokens // 2
    return Work(deployment.batch, 1, max(0, seen - 1), phase="decode", num_logits=1)


def _notes(setting: Setting, hardware: Hardware) -> Iterable[str]:
    times = hardware.eager
    assert times is not None
    yield (
        f"our own module, {times.threads} threads of torch {times.torch}, calibrated {times.measured}; "
        "prompts are read at once, and nobody waits"
    )
    if setting.graph.model.vision is not None:
        yield "image tiles are not timed"
    if setting.kv_dtype_bytes != ITEM_BYTES[setting.scheme.name]:
        yield f"times are of a cache in {setting.scheme.name}, as our module keeps it"


def eager_step(model: EagerModel, hardware: Hardware, work: Work) -> StepLatency:
    """One pass kind by kind: executed FLOPs at the best measured rate, bytes from memory at its bandwidth, estimate.

    Only what does not stay in the processor's caches from one pass to the next has to come from memory.
    """
    cold, bandwidth = model.cold(work), hardware.memory.bandwidth.value
    peak = getattr(hardware.peaks, model.dtype)
    rate = peak.value if peak is not None else float("inf")
    flops = {id(row.group): row.flops for row in executed_rows(model.graph, work)}
    rows = []
    for time in model.by_group(work):
        group = time.group
        compute = flops.get(id(group), 0) / rate
        memory = cold * group.count * model.layer_bytes(group, work) / bandwidth
        at_least = max(compute, memory)  # a coarse calibration may have missed the machine's own best rate
        rows.append(KindLatency.of(kind_name(group), group.count, compute, memory, 0.0, max(time.seconds, at_least)))
    return StepLatency.of(gathered(tuple(rows)), model.constant(cold))
