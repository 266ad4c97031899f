"""Stage 6: `plan`, from a layer graph and a deployment to a `Plan`."""

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.spec.estimates import estimates_of
from planners.catalog import engine as engine_of
from planners.catalog import quantization as quantization_of
from planners.catalog.cluster import Cluster, parse_cluster
from planners.collectives.communication import communication
from planners.collectives.training_traffic import Load, train_traffic
from planners.counts.flops import count_flops
from planners.counts.kv_cache import cache_dtype_bytes, plan_cache
from planners.counts.params import count_params
from planners.counts.weights import scheme_of, weigh
from planners.device.memory import Setting, describe_device, place
from planners.device.stages import stages
from planners.device.training_state import TrainSetting
from planners.plan_types import (
    ClusterInfo,
    Deployment,
    DeviceMemory,
    Estimates,
    IllegalLayout,
    Latency,
    LayoutRow,
    Mode,
    Objective,
    Plan,
    TrainTraffic,
)
from planners.request import DEFAULT_PREFILL_CHUNK, LARGEST, Pinned, Request
from planners.search.layouts import choose, layouts_for, row_of, why_not
from planners.search.suggestions import suggest
from planners.timing.latency_report import plan_latency
from planners.timing.latency_rows import Wanted
from planners.timing.routing import read_routing


def plan(  # noqa: PLR0913 - the options of the command
    graph: LayerGraph,
    *,
    gpus: str | None = None,
    quantization: str = "bf16",
    kv_dtype: str = "bf16",
    context: int | None = None,
    batch: int = 1,
    tp: int | None = None,
    ep: int | None = None,
    pp: int | None = None,
    dp: int | None = None,
    cp: int | None = None,
    engine: str = "ideal",
    objective: Objective = "balanced",
    mode: Mode = "serve",
    num_tiles: int = 0,
    prefill_chunk: int = DEFAULT_PREFILL_CHUNK,
    memory_fraction: float | None = None,
    train: TrainSetting | None = None,
    output_tokens: int | None = None,
    train_tokens: int | None = None,
    usd_per_gpu_hour: float | None = None,
    routing: str | None = None,
) -> Plan:
    """What the model costs and, with `gpus` (`8xH100`), whether and how it fits.

    `context` counts tokens a sequence (default 8,192 or the model's shorter limit, never silently its max_seq_len) and
    `batch` sequences over the whole deployment. Degrees left out are chosen by `objective`; without `gpus` they are 1
    and nothing limits memory. `cp` is never chosen: it divides the tokens of a prefill, and decoding needs a plan of
    its own. `mode="train"` plans weights, gradients, optimizer states and saved activations by
    `train`. Time is told for a batch at the planned context, or with `output_tokens` for a closed loop of `batch`
    clients; `train_tokens` and `usd_per_gpu_hour` give hours and cost; `routing` is a measurement's JSON file,
    whose expert load says how tokens choose experts (by default uniformly).

    Raises UserError for what cannot be planned: unknown names, degrees whose product is not the number of GPUs, layouts
    the model does not allow, schemes that cannot pack a tensor.
    """
    request = Request(
        gpus=gpus,
        quantization=quantization,
        kv_dtype=kv_dtype,
        context=context,
        batch=batch,
        tp=tp,
        ep=ep,
        pp=pp,
        dp=dp,
        cp=cp,
        engine=engine,
        objective=objective,
        mode=mode,
        num_tiles=num_tiles,
        prefill_chunk=prefill_chunk,
        memory_fraction=memory_fraction,
        train=train or TrainSetting(),
        output_tokens=output_tokens,
        train_tokens=train_tokens,
        usd_per_gpu_hour=usd_per_gpu_hour,
        routing=routing,
    )
    return plan_request(graph, request)


def plan_request(graph: LayerGraph, request: Request) -> Plan:
    """`plan` for arguments that are gathered in one object."""
    request.check(graph)
    cluster = parse_cluster(request.gpus) if request.gpus is not None else None
    setting = _setting(graph, request, cluster)
    tokens, batch = request.tokens(graph), request.batch
    rows, illegal = _rows(setting, cluster, request, tokens)
    training = request.mode == "train"
    chosen = choose(rows, request.objective, _gpus_per_host(cluster), training=training, batch=batch)
    memory = describe_device(place(setting, chosen.layout), tokens, batch)
    return Plan(
        model=graph.name,
        estimated=graph.model.estimated,
        estimates=_estimates(graph),
        deployment=_deployment(setting, request, tokens),
        cluster=_cluster_info(cluster, request.gpus),
        params=count_params(graph),
        flops=count_flops(graph, context=tokens, batch=batch),
        weights=weigh(graph, setting.scheme),
        kv_cache=plan_cache(graph, setting.engine, dtype=request.kv_dtype, context=tokens, batch=batch),
        layout=chosen.layout,
        layouts=rows,
        illegal_layouts=illegal,
        memory_per_device=memory,
        communication=communication(graph, chosen.layout, cluster.gpus_per_host if cluster else None, tokens),
        train_traffic=_traffic(setting, cluster, chosen.layout, tokens, batch),
        fits=chosen.fits if cluster else None,
        reasons=_reasons(memory, chosen, tokens, batch),
        max_context=chosen.max_context if cluster else None,
        max_batch=chosen.max_batch if cluster else None,
        suggestions=suggest(setting, cluster, request) if cluster and not chosen.fits else (),
        latency=_latency(setting, cluster, chosen, request) if cluster else None,
    )


def _setting(graph: LayerGraph, request: Request, cluster: Cluster | None) -> Setting:
    return Setting(
        graph=graph,
        scheme=scheme_of(quantization_of(request.quantization)),
        engine=engine_of(request.engine),
        hardware=cluster.hardware if cluster else None,
        kv_dtype_bytes=cache_dtype_bytes(request.kv_dtype),
        memory_fraction=request.memory_fraction,
        prefill_chunk=request.prefill_chunk,
        num_tiles=request.num_tiles,
        train=request.train if request.mode == "train" else None,
    )


def _traffic(setting: Setting, cluster: Cluster | None, layout: Layout, tokens: int, batch: int) -> TrainTraffic | None:
    train = setting.train
    if train is None:
        return None
    load = Load.of(train, layout, tokens, batch)
    found = stages(setting.graph, setting.scheme, layout.tp, layout.ep, layout.pp)
    return train_traffic(setting.graph, train, layout, load, found, cluster.gpus_per_host if cluster else None)


def _latency(setting: Setting, cluster: Cluster, chosen: LayoutRow, request: Request) -> Latency:
    wanted = Wanted(
        context=request.tokens(setting.graph),
        batch=request.batch,
        output_tokens=request.output_tokens,
        max_batch=chosen.max_batch,
        train_tokens=request.train_tokens,
        usd_per_gpu_hour=request.usd_per_gpu_hour,
        routing=read_routing(request.routing, setting.graph),
    )
    return plan_latency(setting, cluster, chosen.layout, wanted)


def _estimates(graph: LayerGraph) -> Estimates:
    if not graph.model.estimated:
        return Estimates()
    found = estimates_of(graph.model.spec)
    return Estimates(params=found.params, work=found.work)


def _gpus_per_host(cluster: Cluster | None) -> int:
    return cluster.gpus_per_host if cluster else LARGEST


def _rows(
    setting: Setting, cluster: Cluster | None, request: Request, tokens: int
) -> tuple[tuple[LayoutRow, ...], tuple[IllegalLayout, ...]]:
    """A row per legal layout of the cluster, and the illegal ones with their reason."""
    if cluster is None:
        layout = request.pinned.alone()
        reason = why_not(setting, layout, tokens)
        if reason:
            raise UserError([Problem(reason, path=str(layout))])
        return (row_of(setting, layout, tokens, request.batch),), ()
    legal, illegal = layouts_for(setting, cluster.num_gpus, request.pinned, tokens)
    if not legal:
        raise UserError(_no_layout(cluster, request.pinned, illegal))
    return tuple(row_of(setting, layout, tokens, request.batch) for layout in legal), illegal


def _no_layout(cluster: Cluster, pinned: Pinned, illegal: tuple[IllegalLayout, ...]) -> list[Problem]:
    if not illegal:
        layout = pinned.alone()
        axes = ("tp", "ep", "pp", "dp", *(["cp"] if layout.cp > 1 else []))
        product = " x ".join(f"{axis}={getattr(layout, axis)}" for axis in axes)
        message = f"{product} = {layout.num_devices} devices do not divide the {cluster.num_gpus} GPUs of {cluster}"
        return [Problem(message, hint="the product of the degrees must be the number of GPUs")]
    reasons = dict.fromkeys(row.reason for row in illegal)
    return [
        Problem(f"no layout on {cluster} is legal: {reason}", hint="choose other degrees or GPUs") for reason in reasons
    ]


def _reasons(memory: DeviceMemory, chosen: LayoutRow, tokens: int, batch: int) -> tuple[str, ...]:
    if memory.capacity_bytes is None:
        return ("no GPUs were given, so nothing limits memory",)
    state = "fits" if chosen.fits else "does not fit"
    need = f"{state}: the fullest device needs {memory.total_bytes:,} B of {memory.capacity_bytes:,} B"
    reasons = [f"{need} with {chosen.layout}, context {tokens:,}, batch {batch:,}"]
    if memory.weights_bytes > memory.capacity_bytes:
        reasons.append("the weights alone exceed the device")
    return tuple(reasons)


def _deployment(setting: Setting, request: Request, tokens: int) -> Deployment:
    share = setting.engine.memory.fraction.value if setting.engine.memory else 1.0
    train = setting.train
    return Deployment(
        mode=request.mode,
        context=tokens,
        context_origin="default" if request.context is None else "given",
        batch=request.batch,
        quantization=setting.scheme.name,
        kv_dtype=request.kv_dtype,
        engine=setting.engine.name,
        objective=request.objective,
        num_tiles=setting.num_tiles,
        prefill_chunk=setting.prefill_chunk,
        memory_fraction=share if setting.memory_fraction is None else setting.memory_fraction,
        optimizer=train.optimizer if train else None,
        zero_stage=train.zero_stage if train else None,
        activation_checkpointing=train.checkpointing if train else None,
        micro_batch=train.micro_batch if train else None,
        gradient_bytes=train.gradient_bytes if train else None,
        precision=train.precision if train else None,
    )


def _cluster_info(cluster: Cluster | None, text: str | None) -> ClusterInfo | None:
    if cluster is None or text is None:
        return None
    return ClusterInfo(
        text=text,
        hardware=cluster.hardware.name,
        num_gpus=cluster.num_gpus,
        num_hosts=cluster.num_hosts,
        gpus_per_host=cluster.gpus_per_host,
    )
