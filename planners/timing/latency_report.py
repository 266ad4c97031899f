"""The `latency` section of a plan: what its layout takes, bound and estimate, for serving or for training."""

from l4spec.catalog.entry import Entry
from l4spec.sharding.layout import Layout
from planners.catalog.cluster import Cluster
from planners.device.memory import Setting
from planners.plan_types import Latency
from planners.timing.latency_rows import Wanted, latency_errors, step_latency
from planners.timing.layer_demand import Step
from planners.timing.machine import Machine
from planners.timing.step import StepModel, step_model

_SECONDS_PER_HOUR = 3600
_MILLION = 1_000_000


def plan_latency(setting: Setting, cluster: Cluster, layout: Layout, wanted: Wanted) -> Latency:
    """Time of the chosen layout on the cluster. What is not known is null, and says why."""
    if cluster.hardware.eager is not None:
        from planners.module.report import eager_latency

        return eager_latency(setting, cluster.hardware, layout, wanted)
    machine = Machine(cluster.hardware, cluster.gpus_per_host)
    if layout.cp > 1:
        return Latency(reason="the time of prefills divided among ranks (cp) is not estimated")
    if setting.train is not None:
        from planners.timing.training_report import train_latency

        return train_latency(setting, machine, layout, wanted)
    model = step_model(
        setting.graph,
        setting.scheme,
        layout,
        machine=machine,
        kv_dtype_bytes=setting.kv_dtype_bytes,
        engine=setting.engine.name,
        routing=wanted.routing,
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
        prefill=step_latency(prefill),
        decode=step_latency(decode),
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
        "tokens_per_second_per_user": _user_rate(ttft, tpot, wanted.output_tokens),
        "tokens_per_second_per_gpu": per_gpu,
        "usd_per_gpu_hour": wanted.usd_per_gpu_hour,
        "usd_per_million_output_tokens": _price(wanted.usd_per_gpu_hour, per_gpu),
        "errors": latency_errors(found.errors),
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
    from planners.timing.closed_loop import Load, serve

    capacity = max(1.0, wanted.max_batch / (layout.dp * layout.ep * layout.pp))
    served = serve(model, Load(prompt, wanted.output_tokens, micro, capacity))
    # a client that waits for its own prompt asks for no tokens meanwhile (Little's law)
    return served.ttft, served.tpot, micro * _user_rate(served.ttft, served.tpot, wanted.output_tokens)


def _user_rate(ttft: float, tpot: float, output_tokens: int | None) -> float:
    """Tokens per second that one client sees: while decoding, or over a whole request with its prompt."""
    if output_tokens is None:
        return 1 / tpot
    return output_tokens / (ttft + (output_tokens - 1) * tpot)


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
    if wanted_routing := model.routing.layers:
        notes.append(f"experts are chosen as measured in {len(wanted_routing)} layers, uniformly elsewhere")
    return tuple(notes)


def _price(usd_per_gpu_hour: float | None, tokens_per_second_per_gpu: float) -> float | None:
    """Dollars of a million output tokens at full use."""
    if usd_per_gpu_hour is None:
        return None
    return usd_per_gpu_hour * _MILLION / (tokens_per_second_per_gpu * _SECONDS_PER_HOUR)
