"""The `latency` section of a plan: bound and estimate of its layout, for serving or for training."""

from typing import TYPE_CHECKING, NamedTuple

from l4spec.graph.build import mtp_graph
from l4spec.sharding.layout import Layout
from l4spec.units import ceil_div
from planners.catalog.engine_formats import unsupported
from planners.deployment import Deployment
from planners.device.memory import place
from planners.draft_options import acceptance_of
from planners.latency_types import NOT_TIMED_UNDER_CP, Latency, TimePart
from planners.timing.chunks import in_chunks
from planners.timing.drafts import decode_time, drafting, tokens_per_step
from planners.timing.efficiency import extrapolations, serving_efficiency
from planners.timing.layer_demand import Step
from planners.timing.likeness import errors_like, serving_conditions
from planners.timing.machine import Machine
from planners.timing.routing import read_routing
from planners.timing.step import StepModel, step_model

if TYPE_CHECKING:
    from planners.device.host_memory import HostMemory

_SECONDS_PER_HOUR = 3600
_MILLION = 1_000_000
_OPEN_LOOP = (
    "errors are of closed loops, since only one published row has a rate; times of random arrivals differ from those "
    "of simulations by at most 7 % (TTFT) and 13 % (end to end) on 35 loads (benchmarks/open_loop.py)"
)
_SERVED = 0.999
"""Share of requests from which a rate counts as served, as in a search."""


def model_of(deployment: Deployment, layout: Layout) -> StepModel:
    """The step model of a layout of a deployment: factors and experts' load are those that its request names."""
    setting, cluster, request = deployment.setting, deployment.cluster, deployment.request
    assert cluster is not None, "time is of GPUs"
    plain = step_model(
        setting.graph,
        setting.scheme,
        layout,
        machine=Machine(cluster.hardware, cluster.gpus_per_host),
        kv_dtype_bytes=setting.kv_dtype_bytes,
        efficiency=serving_efficiency(setting.engine.name, request.factors),
        routing=read_routing(request.routing, deployment.graph),
    )
    acceptance, module = acceptance_of(request.draft_acceptance), mtp_graph(setting.graph)
    return drafting(plain, module, acceptance) if acceptance and module is not None else plain


def engine_latency(deployment: Deployment, layout: Layout, max_batch: int) -> Latency:
    """Time of a layout on the deployment's cluster under its engine. Unknown times are null, with the reason.

    `max_batch` sequences of the whole deployment fit at once.
    """
    setting, cluster = deployment.setting, deployment.cluster
    assert cluster is not None, "time is of GPUs"
    if layout.cp > 1 and setting.train is None:
        return Latency(reason=NOT_TIMED_UNDER_CP)
    if setting.train is not None:
        from planners.timing.training_report import train_latency

        return train_latency(deployment, Machine(cluster.hardware, cluster.gpus_per_host), layout)
    model = model_of(deployment, layout)
    if model.unknown:
        return Latency(reason=model.unknown)
    if setting.host is not None:
        return _beside_host(model, deployment, setting.host)
    return _serving(model, deployment, max_batch)


def _beside_host(model: StepModel, deployment: Deployment, host: "HostMemory") -> Latency:
    """Bounds alone: no published row has weights in the host's memory and names the processor."""
    from planners.timing.host_bound import COPIED_FROM, SharedStep

    context, batch, prompt = deployment.context, deployment.batch, deployment.prompt_tokens
    layers = place(deployment.setting, model.layout).layers_on_host(context, batch)
    shared = SharedStep(model, host, layers)
    prefill = shared.time(Step(prompt_tokens=prompt, prompt_length=prompt))
    images = deployment.setting.num_tiles * model.tile_bound_seconds
    decode = shared.time(Step(decode=batch, context=context))
    return Latency(
        reason="nobody measured weights in host memory with a known processor: bounds only",
        prompt_tokens=prompt,
        output_tokens=deployment.output_tokens,
        concurrency=batch if deployment.request.rate is None else None,
        prefill=prefill,
        decode=decode,
        ttft_bound_seconds=prefill.bound_seconds + images,
        time_per_output_token_bound_seconds=decode.bound_seconds,
        notes=(f"steps of {COPIED_FROM} tokens and more copy weights to the device, as llama.cpp does",),
    )


def _serving(model: StepModel, deployment: Deployment, max_batch: int) -> Latency:
    layout, output_tokens, prompt = model.layout, deployment.output_tokens, deployment.prompt_tokens
    ranks = layout.dp * layout.ep
    sequences = ceil_div(deployment.batch, ranks)
    micro = ceil_div(sequences, layout.pp)
    decode = decode_time(model, Step(decode=micro, context=deployment.context))
    prefill = in_chunks(
        model, model.time(Step(prompt_tokens=prompt, prompt_length=prompt)), prompt, deployment.setting.prefill_chunk
    )
    efficiency, brought = model.efficiency, tokens_per_step(model)
    section = Latency(
        reason=None if efficiency else f"no published measurements of '{deployment.setting.engine.name}': bounds only",
        prompt_tokens=prompt,
        output_tokens=output_tokens,
        concurrency=deployment.batch if deployment.request.rate is None else None,
        prefill=prefill,
        decode=decode,
        ttft_bound_seconds=prefill.bound_seconds + deployment.setting.num_tiles * model.tile_bound_seconds,
        time_per_output_token_bound_seconds=decode.bound_seconds / brought,
        cautions=_cautions(model, deployment, micro),
        notes=_notes(model, deployment),
    )
    if efficiency is None:
        return section
    alone = (prefill.estimate_seconds or 0.0, decode.estimate_seconds or 0.0)
    given = service(model, deployment, max_batch, alone)
    ttft, tpot, per_gpu, step = given.ttft, given.tpot, given.tokens_per_second_per_gpu, given.decode
    price = deployment.request.usd_per_gpu_hour
    first, following = _parts(given, model.request_seconds, alone, output_tokens, brought)
    estimates = {
        "ttft_parts": first,
        "time_per_output_token_parts": following,
        "factors": efficiency.name,
        "extrapolated": bool(_beyond(model, deployment.context)),
        "ttft_seconds": ttft,
        "time_per_output_token_seconds": tpot,
        "time_per_output_token_bound_seconds": (decode if step is None else decode_time(model, step)).bound_seconds
        / brought,
        "tokens_per_second_per_user": _user_rate(ttft, tpot, output_tokens),
        "tokens_per_second_per_gpu": per_gpu,
        "usd_per_gpu_hour": price,
        "usd_per_million_output_tokens": _price(price, per_gpu),
        "errors": errors_like(efficiency, serving_conditions(model, deployment.context, deployment.batch)),
        "sources": (efficiency.source,),
        "cautions": (*section.cautions, *_overloaded(deployment, given)),
    }
    return section.model_copy(update=estimates)


class Service(NamedTuple):
    """Service that clients of a deployment see, in seconds and output tokens per second and GPU.

    `decode` is the step that decodes their tokens; None for the whole batch at the planned context. `prefill_share` is
    the share of the GPUs' busy time spent on prefill, which divides the price between input and output tokens; None
    without requests.
    """

    ttft: float
    tpot: float
    tokens_per_second_per_gpu: float
    decode: Step | None = None
    prefill_share: float | None = None
    running: float = 1.0
    prefill_seconds: float = 0.0
    waited: float = 0.0
    images: float = 0.0
    """Of `ttft`, what the vision tower takes for the image tiles of a step."""
    is_saturated: bool = False
    """True if as many sequences run as may, with requests that arrive at a rate."""


def service(model: StepModel, deployment: Deployment, max_batch: int, alone: tuple[float, float]) -> Service:
    """The service of a batch, or of the deployment's requests; `alone` are seconds of its prefill and decode step.

    In a loop only as many sequences decode at once as fit, `max_batch`, and as a step of the engine takes.
    """
    layout, output_tokens = model.layout, deployment.output_tokens
    ranks, images = layout.dp * layout.ep, deployment.setting.num_tiles * model.tile_seconds
    if output_tokens is None:
        prefill, tpot = alone[0], alone[1] / tokens_per_step(model)
        ttft = prefill + model.request_seconds + images
        per_gpu = deployment.batch / ranks / tpot * ranks / layout.num_devices
        return Service(ttft, tpot, per_gpu, images=images)
    from planners.timing.closed_loop import Load, serve
    from planners.timing.open_loop import open_loop

    servers = ranks * layout.pp  # each with its own sequences: ranks of attention, and micro-batches of a pipeline
    sequences = ceil_div(deployment.batch, ranks)
    micro = ceil_div(sequences, layout.pp)
    capacity = max(1.0, min(max_batch / servers, deployment.request.max_num_seqs or max_batch))
    chunk = deployment.setting.prefill_chunk
    load = Load(deployment.prompt_tokens, output_tokens, micro, capacity, chunk=chunk)
    rate = deployment.request.rate
    if rate is not None:
        served = open_loop(model, load, rate / servers)
        per_second = min(rate, served.requests_per_second * servers) * output_tokens
    else:
        served = serve(model, load)
        # a client that waits for its own prompt asks for no tokens meanwhile (Little's law); some ranks may have fewer
        per_second = deployment.batch * _user_rate(served.ttft + images, served.tpot, output_tokens)
    decoding = served.tpot * output_tokens - (served.running - 1) * served.prefill_seconds
    return Service(
        served.ttft + images,
        served.tpot,
        per_second / layout.num_devices,
        served.decode,
        served.prefill_seconds / (served.prefill_seconds + max(decoding, 0.0) / served.running),
        served.running,
        served.prefill_seconds,
        served.waited,
        images,
        rate is not None and served.running >= capacity,
    )


def _parts(
    given: Service, request: float, alone: tuple[float, float], output_tokens: int | None, brought: float
) -> tuple[tuple[TimePart, ...], tuple[TimePart, ...]]:
    """Parts of the time to a first token and to a following one; they add up to `planners.timing.closed_loop`'s times.

    A step yields `brought` tokens, which share its time.
    """
    share = "" if brought == 1 else f", over {brought:,.4g} tokens that it brings"
    of_request = TimePart(what="each request, whatever its prompt", seconds=request)
    seen = (TimePart(what="image tiles through the vision tower", seconds=given.images),) if given.images else ()
    if output_tokens is None:
        prefill = TimePart(what="the prefill of one prompt", seconds=alone[0])
        step = TimePart(what=f"a decode step of the whole batch{share}", seconds=alone[1] / brought)
        return (prefill, *seen, of_request), (step,)
    added = (given.running - 1) / output_tokens * given.prefill_seconds
    sequences = f"a decode step of {given.running:,.4g} sequences, half answered"
    step = TimePart(what=sequences, seconds=(given.tpot - added) * brought)
    of_token = TimePart(what=f"{sequences}{share}", seconds=given.tpot - added)
    others = f"prompts of the others, ({given.running:,.4g} - 1) / {output_tokens:,} of one a token"
    prompt = TimePart(what="what a prompt adds to the steps that read it", seconds=given.prefill_seconds)
    steps = "decode steps of the others before it is read, and between its chunks"
    waited = (TimePart(what=steps, seconds=given.waited),) if given.waited else ()
    waiting = given.ttft - request - step.seconds - prompt.seconds - given.waited - given.images
    queueing = TimePart(what="waiting behind other prompts, or for room", seconds=max(0.0, waiting))
    return (step, prompt, *waited, queueing, *seen, of_request), (of_token, TimePart(what=others, seconds=added))


def _user_rate(ttft: float, tpot: float, output_tokens: int | None) -> float:
    """Tokens per second that one client sees: while decoding, or over a whole request with its prompt."""
    if output_tokens is None:
        return 1 / tpot
    return output_tokens / (ttft + (output_tokens - 1) * tpot)


def _beyond(model: StepModel, tokens: int) -> tuple[str, ...]:
    if model.efficiency is None:
        return ()
    routed = any(kind.num_experts for kind in model.kinds)
    return extrapolations(model.efficiency, model.machine.hardware.name, routed=routed, tokens=tokens)


def _notes(model: StepModel, deployment: Deployment) -> tuple[str, ...]:
    notes = []
    if deployment.request.rate is not None:
        notes.append(_OPEN_LOOP)
    if model.layout.pp > 1:
        notes.append(f"a batch is cut into {model.layout.pp} micro-batches")
    if deployment.setting.num_tiles and deployment.output_tokens is not None:
        notes.append("image tiles delay the first token of their own request; steps of the others leave them out")
    if wanted_routing := model.routing.layers:
        notes.append(f"experts are chosen as measured in {len(wanted_routing)} layers, uniformly elsewhere")
    return tuple(notes)


def _cautions(model: StepModel, deployment: Deployment, sequences: int) -> tuple[str, ...]:
    """Reasons to trust the times less; `sequences` are those of a planned decode step."""
    extrapolated = _beyond(model, deployment.context)
    return (*_not_run(deployment), *extrapolated, *_unlike_any_row(model), *_over_limit(deployment, sequences))


def _not_run(deployment: Deployment) -> tuple[str, ...]:
    """That the engine does not run on these GPUs, or not with these weights: the times are of no launch."""
    setting = deployment.setting
    reason = (
        None if setting.hardware is None else unsupported(setting.engine.name, setting.hardware, setting.scheme.name)
    )
    return () if reason is None else (reason,)


def _unlike_any_row(model: StepModel) -> tuple[str, ...]:
    if model.drafts is None:
        return ()
    return ("no measured row drafts by a module: an extrapolation, at the acceptance that was given",)


def _over_limit(deployment: Deployment, sequences: int) -> tuple[str, ...]:
    """That an engine does not run a batch which is planned as one step."""
    most = deployment.request.max_num_seqs
    if most is None or sequences <= most or deployment.output_tokens is not None:
        return ()
    return (f"a step of the engine has at most {most:,} sequences, the decode step here has {sequences:,}",)


def _overloaded(deployment: Deployment, given: Service) -> tuple[str, ...]:
    """That more requests arrive than are served: then no time to first token is the mean, as it grows without end."""
    rate, output = deployment.request.rate, deployment.output_tokens
    if rate is None or output is None or deployment.cluster is None:
        return ()
    most = given.tokens_per_second_per_gpu * deployment.cluster.num_gpus / output
    if most >= _SERVED * rate:
        limit = f"the rate is at its limit: about as many requests arrive as are served, {rate:g} a second; waits vary"
        return (f"{limit} by many times, and TTFT is without them",) if given.is_saturated else ()
    return (
        f"the rate is too high: {rate:g} requests a second arrive and {most:,.3g} are served, so that the queue grows "
        "without end; TTFT is without its wait",
    )


def _price(usd_per_gpu_hour: float | None, tokens_per_second_per_gpu: float) -> float | None:
    """Dollars of a million output tokens at full use."""
    if usd_per_gpu_hour is None:
        return None
    return usd_per_gpu_hour * _MILLION / (tokens_per_second_per_gpu * _SECONDS_PER_HOUR)
