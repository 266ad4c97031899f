"""From a model's deployment to servers: layout, blocks of cache, step times, and what all of it rests on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.spec.scenario.deployment import FixedTimes as FixedTimesSpec
from l4spec.spec.scenario.deployment import KernelTimes as KernelTimesSpec
from l4spec.spec.scenario.deployment import ModelDeployment, SchedulerSpec
from planners.catalog.loader import load
from planners.catalog.schedulers import SchedulerDefaults, scheduler_of
from planners.counts.kv_cache import CacheRow, block_bytes
from planners.deployment import Deployment
from planners.device.activations import ACTIVATION_BYTES
from planners.device.memory import Placement, place
from planners.plan import plan_deployment
from planners.request import PlanRequest
from planners.simulate.cache.law import CacheLaw, cache_law
from planners.simulate.cache.pool import BlockPool
from planners.simulate.engines.policy import Settings
from planners.simulate.rank import Rank
from planners.simulate.recorder import Recorder
from planners.simulate.replica import Replica
from planners.simulate.settings import POLICIES, merged, settings_of
from planners.simulate.times.interface import ConstantStepTimes, StepTimes
from planners.simulate.times.kernel_tables import read_kernels
from planners.simulate.times.kernels import KernelStepTimes, RoutedLayers
from planners.simulate.times.planned import PlannedTimes
from planners.timing.efficiency import ServingEfficiency
from planners.timing.machine import Machine
from planners.timing.routing import read_routing
from planners.timing.step import step_model

FindFile = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class Server:
    """One replica of a model as it will run: everything but its requests."""

    key: str
    model: str
    gpus: str
    num_gpus: int
    layout: Layout
    engine: str
    defaults: SchedulerDefaults
    settings: Settings
    law: CacheLaw
    blocks_per_rank: int
    num_ranks: int
    times: StepTimes
    basis: tuple[str, ...]
    usd_per_gpu_hour: float | None

    def replica(self, number: int, recorder: Recorder) -> Replica:
        """A fresh replica."""
        policy = POLICIES[self.defaults.policy]
        ranks = [
            Rank(BlockPool(self.blocks_per_rank, self.law, caching=self.settings.prefix_caching), policy(self.settings))
            for _ in range(self.num_ranks)
        ]
        return Replica(number, ranks, self.times, recorder)


def server_of(key: str, graph: LayerGraph, model: ModelDeployment, scheduler: SchedulerSpec, find: FindFile) -> Server:
    """One replica of a deployed model, planned and timed.

    Raises UserError, naming fields as `models.KEY.…`, for what cannot be planned, does not fit, or has no known time.
    """
    try:
        return _server_of(key, graph, model, scheduler, find)
    except UserError as error:
        named = [_within(key, problem) for problem in error.problems]
        raise UserError(named) from None


def _within(key: str, problem: Problem) -> Problem:
    field = problem.path.lstrip("-")
    path = f"models.{key}.{field}" if field and field in ModelDeployment.model_fields else f"models.{key}"
    message = problem.message if path.endswith(field) else f"{problem.path}: {problem.message}"
    return Problem(message, path, problem.place, problem.hint)


def _server_of(key: str, graph: LayerGraph, model: ModelDeployment, scheduler: SchedulerSpec, find: FindFile) -> Server:
    defaults = scheduler_of(model.engine)
    deployment = Deployment.resolve(graph, plan_request(model))
    cluster = deployment.cluster
    assert cluster is not None, "a scenario names its GPUs"
    plan = plan_deployment(deployment)
    layout, placement = plan.layout, place(deployment.setting, plan.layout)
    device = cluster.hardware.usable.num_bytes
    settings = settings_of(defaults, merged(scheduler, model.scheduler), device)
    law, blocks = _cache(model, placement, settings)
    if blocks < 1:
        needed, limit = plan.memory_per_device.total_bytes, plan.memory_per_device.capacity_bytes
        message = f"{graph.name} leaves no room for a cache on {model.gpus}: {needed:,} B of {limit or 0:,} B are taken"
        raise UserError([Problem(message, path="gpus", hint="more or larger GPUs, or a smaller quantization")])
    times = _times(graph, model, deployment, layout, find)
    ranks = layout.ep * layout.pp * layout.dp
    blocks_from = "given" if model.kv_blocks is not None else f"by the plan's free memory under engine {model.engine}"
    basis = (
        f"{graph.name} on {model.gpus} as {layout}, {defaults.name} {defaults.version} ({defaults.source})",
        f"{blocks:,} blocks of {law.block_size} tokens on each of {ranks} rank(s), {blocks_from}",
        *times.basis,
        *_assumptions(layout),
    )
    return Server(
        key,
        graph.name,
        model.gpus,
        cluster.num_gpus,
        layout,
        model.engine,
        defaults,
        settings,
        law,
        blocks,
        ranks,
        times,
        basis,
        model.usd_per_gpu_hour,
    )


def plan_request(model: ModelDeployment) -> PlanRequest:
    """What the planner is asked for a deployed model: context and batch limit nothing, the simulation does."""
    return PlanRequest(
        gpus=model.gpus,
        quantization=model.quantization,
        kv_dtype=model.kv_dtype,
        engine=model.engine,
        memory_fraction=model.memory_fraction,
        tp=model.tp,
        ep=model.ep,
        pp=model.pp,
        dp=model.dp,
    )


def _cache(model: ModelDeployment, placement: Placement, settings: Settings) -> tuple[CacheLaw, int]:
    """The law of a rank's blocks and how many there are: those of the stage with the least room."""
    engine, size = placement.setting.engine, settings.block_size_tokens
    budget = placement.budget
    least: tuple[int, CacheLaw] | None = None
    for (_, rows), use in zip(placement.stages, placement.uses(1, 1), strict=True):
        if not rows:
            continue
        law = cache_law(rows, engine, size)
        free = 0 if budget is None else budget.limit(use) - use.total + use.cache
        blocks = max(0, free) // _block_bytes(rows, placement, law)
        if least is None or blocks < least[0]:
            least = blocks, law
    if least is None:
        return CacheLaw(size), model.kv_blocks or 1 << 40
    return least[1], least[0] if model.kv_blocks is None else model.kv_blocks


def _block_bytes(rows: tuple[CacheRow, ...], placement: Placement, law: CacheLaw) -> int:
    """Bytes of one block: of a group of layers where the engine groups them, else of all layers."""
    if law.groups > 1:
        tokens = placement.setting.engine.block_size_tokens
        return int(
            Fraction(block_bytes(rows, placement.setting.engine) * law.block_size, tokens.value if tokens else 1)
        )
    return law.block_size * sum(row.count * row.bytes_per_token for row in rows)


def _times(
    graph: LayerGraph, model: ModelDeployment, deployment: Deployment, layout: Layout, find: FindFile
) -> StepTimes:
    times = model.times
    if isinstance(times, FixedTimesSpec):
        return ConstantStepTimes(times.step, times.per_token)
    if isinstance(times, KernelTimesSpec):
        return _kernel_times(graph, model, times, deployment, layout, find)
    assert deployment.cluster is not None
    cluster = deployment.cluster
    stepped = step_model(
        graph,
        deployment.setting.scheme,
        layout,
        machine=Machine(cluster.hardware, cluster.gpus_per_host),
        kv_dtype_bytes=deployment.setting.kv_dtype_bytes,
        engine=deployment.setting.engine.name,
        routing=read_routing(model.routing, graph),
    )
    if times.factors is None:
        return PlannedTimes(stepped)
    factors = load("efficiency", ServingEfficiency, str(find(times.factors)))
    return PlannedTimes(replace(stepped, efficiency=factors, totals={}))


def _kernel_times(
    graph: LayerGraph,
    model: ModelDeployment,
    times: KernelTimesSpec,
    deployment: Deployment,
    layout: Layout,
    find: FindFile,
) -> KernelStepTimes:
    """Tables of kernels, and for routed layers how many experts a step reaches and what their exchange takes.

    Tokens are gathered by all ranks and partial results scattered back, as vLLM's default `allgather_reducescatter`.
    """
    tables = read_kernels(find(times.path), layout.tp)
    groups = [group for group in graph.groups if group.declaration.routed is not None]
    if not groups or tables.moe is None:
        return KernelStepTimes(tables, graph.num_layers, overhead=times.step_overhead)
    assert deployment.cluster is not None
    routing = read_routing(model.routing, graph)
    count = sum(group.count for group in groups)
    known = Machine(deployment.cluster.hardware, deployment.cluster.gpus_per_host).link(layout.ep)
    link = times.link or known
    if layout.ep > 1 and link is None:
        raise UserError([Problem("no link between the ranks is known", path="times", hint="add times.link")])
    sent = 2 * (layout.ep - 1) / layout.ep * graph.model.text.stack.width.hidden_size * ACTIVATION_BYTES
    latency = 2 * times.link_latency if layout.ep > 1 else 0.0

    def coverage(tokens: int) -> float:
        return sum(group.count * routing.reached(group, tokens) for group in groups) / count

    def exchange(tokens: int) -> float:
        return tokens * sent / (link or 1.0) + latency

    return KernelStepTimes(
        tables, graph.num_layers, overhead=times.step_overhead, routed=RoutedLayers(coverage, layout.ep, exchange)
    )


def _assumptions(layout: Layout) -> tuple[str, ...]:
    """What a layout's ranks stand for."""
    lines = []
    if layout.pp > 1:
        lines.append(f"{layout.pp} pipeline stages as {layout.pp} ranks in lockstep, each a micro-batch")
    if layout.ep > 1:
        lines.append(f"{layout.ep} expert-parallel ranks step together, the slowest sets the pace")
    return tuple(lines)
