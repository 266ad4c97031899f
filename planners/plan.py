"""`plan`: from a layer graph and a deployment to a `Plan`."""

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from l4spec.errors import Problem, UserError
from l4spec.graph.adapters import count_adapters
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.huggingface.opening import Model, graph_of
from l4spec.quantization.published import published_name
from l4spec.sharding.layout import Layout
from l4spec.spec.estimates import estimates_of
from planners.catalog.cluster import Cluster
from planners.collectives.communication import communication
from planners.counts.flops import count_flops
from planners.counts.kv_cache import plan_cache
from planners.counts.params import count_params
from planners.counts.weights import weigh
from planners.deferred import Deferred
from planners.deployment import Deployment
from planners.device.memory import Placement, place
from planners.device.memory_terms import describe_device, describe_host
from planners.device.stages import stages
from planners.draft_options import acceptance_of
from planners.plan_types import (
    ChosenBy,
    ClusterInfo,
    DeploymentInfo,
    DeviceMemory,
    DraftPlan,
    Estimates,
    Flops,
    IllegalLayout,
    LayoutRow,
    Plan,
    TrainTraffic,
)
from planners.request import DEFAULT_CONTEXT, MAX, PlanRequest, max_seq_len
from planners.search.layouts import layouts_for, row_of, why_not
from planners.search.objective import choose, untimed
from planners.search.suggestions import suggest
from planners.video import video_info

if TYPE_CHECKING:
    from planners.latency_types import Latency


def plan(model: Model, request: PlanRequest | None = None, /, **options: Any) -> Plan:
    """Count a model's parameters, FLOPs and memory and, with `gpus` (`8xH100`), plan its layout, fit and speed.

    `model` is a shipped name, a path, a spec or a graph. `options` are those of `PlanRequest` by name, as
    `plan("scout", gpus="8xH100", context="1M")`; a request may be given instead. Degrees left out are chosen by
    `objective`; without `gpus` they are 1 and nothing limits memory. `mode="train"` plans weights, gradients, optimizer
    states and saved activations.

    Raises UserError for what cannot be planned: unknown names and options, degrees whose product is not the number of
    GPUs, layouts the model does not allow, schemes that cannot pack a tensor.
    """
    graph = graph_of(model)
    asked = PlanRequest(**options) if request is None else request.changed(**options)
    return plan_deployment(Deployment.resolve(graph, _with_context(graph, asked)))


def plan_for_page(graph: LayerGraph, request: PlanRequest) -> Plan:
    """`plan` for its page of one screen, which shows no times where nothing fits: `latency` is None there."""
    names_files = request.factors is not None or request.routing is not None  # which may be wrong
    timed_anyway = names_files or request.draft_acceptance is not None
    deployment = Deployment.resolve(graph, _with_context(graph, request))
    return plan_deployment(deployment, times_without_fit=timed_anyway)


def _with_context(graph: LayerGraph, asked: PlanRequest) -> PlanRequest:
    """The request with a number instead of `max`: the longest context that fits in any requested layout.

    Without GPUs it is the model's own limit; if not one token fits, the default.
    """
    if asked.context != MAX:
        return asked
    limit = max_seq_len(graph)
    if asked.gpus is not None:
        rows, _ = _rows(Deployment.resolve(graph, asked.changed(context=limit)))
        limit = max(row.max_context for row in rows)
    return asked.changed(context=limit or min(DEFAULT_CONTEXT, max_seq_len(graph)))


def plan_deployment(deployment: Deployment, *, times_without_fit: bool = True) -> Plan:
    """`plan` for a resolved request; without `times_without_fit`, no latency is estimated where nothing fits."""
    graph, cluster, request = deployment.graph, deployment.cluster, deployment.request
    context, batch = deployment.context, deployment.batch
    rows, illegal = _rows(deployment)
    if any(row.fits for row in rows):
        from planners.search.row_times import timed

        rows = timed(deployment, rows)
    chosen, chosen_by = choose(deployment, rows)
    if chosen.training is not None:
        from planners.search.training_choice import as_in_row

        deployment = as_in_row(deployment, chosen)
    setting = deployment.setting
    placement = place(setting, chosen.layout)
    has_times = cluster is not None and (chosen.fits or times_without_fit)
    latency = _latency(deployment, chosen.layout, chosen.max_batch) if has_times else None
    prefilled = context if setting.train is None else 0
    memory, host = describe_device(placement, context, batch), describe_host(placement, context, batch)
    made = Plan(
        model=graph.name,
        estimated=graph.model.estimated,
        estimates=_estimates(graph),
        request=request.echo(),
        deployment=_deployment_info(deployment, chosen_by if len(rows) > 1 else "given"),
        cluster=_cluster_info(cluster, request.gpus),
        params=count_params(graph),
        flops=_flops(deployment),
        weights=weigh(graph, setting.scheme),
        kv_cache=plan_cache(graph, setting.engine, dtype=request.kv_dtype, context=context, batch=batch),
        layout=chosen.layout,
        layouts=rows,
        illegal_layouts=illegal,
        memory_per_device=memory,
        host_memory=host,
        communication=communication(graph, chosen.layout, cluster.gpus_per_host if cluster else None, prefilled),
        train_traffic=_traffic(deployment, chosen.layout),
        fits=chosen.fits if cluster else None,
        reasons=_reasons(memory, chosen, deployment, untimed(rows)),
        max_context=chosen.max_context if cluster else None,
        max_batch=chosen.max_batch if cluster else None,
        suggestions=Deferred(partial(suggest, deployment) if cluster and not chosen.fits else tuple),
        latency=latency,
        module_params=_module_params(graph),
        drafts=_drafts(deployment, placement, latency),
    )
    made.made_from(graph)
    return made


def _latency(deployment: Deployment, layout: Layout, max_batch: int) -> "Latency":
    """Latency by the engine's factors, or on a calibrated machine by the measured pieces of our own module."""
    cluster = deployment.cluster
    assert cluster is not None, "time is of GPUs"
    if cluster.hardware.eager is None:
        from planners.timing.latency_report import engine_latency

        return engine_latency(deployment, layout, max_batch)
    from planners.module.report import eager_latency
    from planners.timing.routing import read_routing

    routing = read_routing(deployment.request.routing, deployment.graph)
    return eager_latency(deployment, cluster.hardware, layout, routing)


def _flops(deployment: Deployment) -> Flops:
    """FLOPs of the usual passes; a training step with adapters is theirs."""
    train, prompt = deployment.setting.train, deployment.prompt_tokens
    lora = train.lora if train else None
    return count_flops(deployment.graph, context=deployment.context, batch=deployment.batch, prompt=prompt, lora=lora)


def _module_params(graph: LayerGraph) -> int | None:
    """Parameters that modules of multi-token prediction add to a checkpoint; None without any."""
    if graph.model.text.mtp is None:
        return None
    from planners.counts.mtp import count_mtp

    modules = count_mtp(graph)
    return modules.stored if modules else None


def _drafts(deployment: Deployment, placement: Placement, latency: "Latency | None") -> DraftPlan | None:
    """Memory of the drafting modules on the last stage, and their part of the estimated step; None without drafts."""
    acceptance = acceptance_of(deployment.request.draft_acceptance)
    if not acceptance:
        return None
    from planners.timing.drafts import is_of_module, mean_accepted

    use = max(placement.uses(deployment.context, deployment.batch), key=lambda use: use.module_weights)
    step = latency.decode if latency else None
    drafting = [kind.estimate_seconds for kind in step.by_kind if is_of_module(kind)] if step else []
    return DraftPlan(
        acceptance=acceptance,
        tokens_per_step=1 + mean_accepted(acceptance),
        weights_bytes=use.module_weights,
        kv_cache_bytes=use.module_cache,
        step_seconds=step.estimate_seconds if step else None,
        draft_seconds=None if not drafting or None in drafting else sum(filter(None, drafting)),
    )


def _traffic(deployment: Deployment, layout: Layout) -> TrainTraffic | None:
    graph, setting, cluster = deployment.graph, deployment.setting, deployment.cluster
    if setting.train is None:
        return None
    from planners.collectives.step_tokens import StepTokens
    from planners.collectives.training_traffic import train_traffic

    load = StepTokens.of(setting.train, layout, deployment.context, deployment.batch)
    cut = stages(graph, setting.scheme, layout.tp, layout.ep, layout.pp, setting.virtual_stages)
    return train_traffic(graph, setting.train, layout, load, cut, cluster.gpus_per_host if cluster else None)


@kept_with()
def _estimates(graph: LayerGraph) -> Estimates:
    if not graph.model.estimated:
        return Estimates()
    fields = estimates_of(graph.model.spec)
    return Estimates(params=fields.params, work=fields.work)


def _rows(deployment: Deployment) -> tuple[tuple[LayoutRow, ...], tuple[IllegalLayout, ...]]:
    """A row per legal layout of the cluster, and the illegal ones with their reason."""
    request, cluster = deployment.request, deployment.cluster
    if cluster is None:
        layout = request.fixed_layout()
        reason = why_not(deployment.setting, layout, deployment.context, deployment.batch)
        if reason:
            raise UserError([Problem(reason, path=str(layout))])
        return (row_of(deployment, layout),), ()
    legal, illegal = layouts_for(deployment.setting, cluster.num_gpus, request, deployment.context, deployment.batch)
    if not legal:
        raise UserError(_no_layout(cluster, request, illegal))
    return tuple(row_of(deployment, layout) for layout in legal), illegal


def _no_layout(cluster: Cluster, request: PlanRequest, illegal: tuple[IllegalLayout, ...]) -> list[Problem]:
    if not illegal:
        layout = request.fixed_layout()
        axes = ("tp", "ep", "pp", "dp", *(["cp"] if layout.cp > 1 else []))
        product = " x ".join(f"{axis}={getattr(layout, axis)}" for axis in axes)
        if layout.num_devices > cluster.num_gpus:
            message = f"{product} needs {layout.num_devices} GPUs, and {cluster} has {cluster.num_gpus}"
        elif cluster.num_gpus % layout.num_devices:
            message = f"{product} = {layout.num_devices} devices do not divide the {cluster.num_gpus} GPUs of {cluster}"
        else:
            message = f"{product} = {layout.num_devices} devices, and {cluster} has {cluster.num_gpus}"
        return [Problem(message, hint=_other_degrees(layout, cluster))]
    reasons = dict.fromkeys(row.reason for row in illegal)
    return [
        Problem(f"no layout on {cluster} is legal: {reason}", hint="choose other degrees or GPUs") for reason in reasons
    ]


def _other_degrees(layout: Layout, cluster: Cluster) -> str:
    """The degree of dp that would use all GPUs, if there is one."""
    replicas, left_over = divmod(cluster.num_gpus * layout.dp, layout.num_devices)
    if left_over or replicas == layout.dp:
        return "the product of the degrees must be the number of GPUs"
    return f"dp={replicas} would use all of them; the product of the degrees must be the number of GPUs"


def _reasons(memory: DeviceMemory, chosen: LayoutRow, deployment: Deployment, untimed: int) -> tuple[str, ...]:
    if memory.capacity_bytes is None:
        return ("no GPUs were given, so nothing limits memory",)
    state = "fits" if chosen.fits else "does not fit"
    need = f"{state}: the fullest device needs {memory.total_bytes:,} B of {memory.capacity_bytes:,} B"
    reasons = [f"{need} with {chosen.layout}, context {deployment.context:,}, batch {deployment.batch:,}"]
    limit = deployment.request.max_context
    if limit is not None and not chosen.fits and (memory.headroom_bytes or 0) >= 0:
        reasons.append(f"the cache has no room for one sequence of {limit:,} tokens, the engine's limit")
    if memory.weights_bytes > memory.capacity_bytes:
        reasons.append("the weights alone exceed the device")
    if untimed:
        reasons.append(f"{untimed:,} more layouts fit, whose replicas are larger: they are not timed")
    return tuple(reasons)


def _deployment_info(deployment: Deployment, chosen_by: ChosenBy) -> DeploymentInfo:
    request, setting = deployment.request, deployment.setting
    share = setting.engine.memory.fraction.value if setting.engine.memory else 1.0
    train = setting.train
    lora = train.lora if train else None
    return DeploymentInfo(
        mode=request.mode,
        context=deployment.context,
        context_origin="default" if request.context is None and request.prompt_tokens is None else "given",
        batch=deployment.batch,
        batch_origin=_batch_origin(deployment),
        quantization=setting.scheme.name,
        as_published=train is None and setting.scheme.name == published_name(deployment.graph.model.spec),
        kv_dtype=request.kv_dtype,
        engine=setting.engine.name,
        objective=request.objective,
        chosen_by=chosen_by,
        num_tiles=setting.num_tiles,
        video=video_info(request.clip, deployment.graph),
        prefill_chunk=setting.prefill_chunk,
        memory_fraction=share if setting.memory_fraction is None else setting.memory_fraction,
        max_context=request.max_context,
        optimizer=train.optimizer if train else None,
        zero_stage=train.zero_stage if train else None,
        activation_checkpointing=train.checkpointing if train else None,
        sequence_parallel=train.sequence_parallel if train else None,
        trainer=train.trainer if train else None,
        virtual_stages=train.virtual_stages if train else None,
        lora_rank=lora.rank if lora else None,
        lora_targets=lora.targets if lora else None,
        lora_params=count_adapters(deployment.graph, lora) if lora else None,
        micro_batch=train.micro_batch if train else None,
        gradient_bytes=train.gradient_bytes if train else None,
        precision=train.precision if train else None,
        fp8_matmuls=train.fp8_scheme if train else None,
        left_open=_left_open(request),
    )


def _left_open(request: PlanRequest) -> tuple[str, ...]:
    """Options of training that are chosen with the layout."""
    if request.mode == "serve":
        return ()
    from planners.search.training_choice import left_open

    return left_open(request)


def _batch_origin(deployment: Deployment) -> Literal["given", "default", "chosen"]:
    if {"batch", "concurrency"} & deployment.request.model_fields_set:
        return "given"
    return "default" if deployment.setting.train is None or deployment.cluster is None else "chosen"


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
