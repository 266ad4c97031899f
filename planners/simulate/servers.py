"""Servers of a model's deployment: layout, blocks of cache, step times, and their basis."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from l4spec.errors import Problem, UserError
from l4spec.graph.build import mtp_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.spec.scenario.deployment import FixedTimes as FixedTimesSpec
from l4spec.spec.scenario.deployment import KernelTimes as KernelTimesSpec
from l4spec.spec.scenario.deployment import ModelDeployment, SchedulerSpec
from planners.catalog.schedulers import SchedulerDefaults, scheduler_of
from planners.counts.kv_cache import CacheRow, block_bytes
from planners.deployment import Deployment
from planners.device.activations import ACTIVATION_BYTES
from planners.device.memory import DeviceUse, Placement, place
from planners.plan import plan_deployment
from planners.request import PlanRequest
from planners.simulate.cache.law import CacheLaw, cache_law
from planners.simulate.cache.pool import BlockPool
from planners.simulate.disaggregation import CacheLink, cache_link
from planners.simulate.drafts import Besides, besides, draft_model, draft_seconds, mtp_seconds
from planners.simulate.engines.policy import Settings
from planners.simulate.rank import Rank
from planners.simulate.recorder import Recorder
from planners.simulate.replica import Replica
from planners.simulate.settings import POLICIES, merged, settings_of
from planners.simulate.speculative import SpeculativeRank
from planners.simulate.times.interface import ConstantStepTimes, StepTimes
from planners.simulate.times.kernel_tables import read_kernels
from planners.simulate.times.kernels import KernelStepTimes, RoutedLayers
from planners.simulate.times.planned import PlannedTimes
from planners.timing.drafts import module_model
from planners.timing.efficiency import serving_efficiency
from planners.timing.machine import Machine
from planners.timing.routing import read_routing
from planners.timing.step import StepModel, step_model

FindFile = Callable[[str], Path]


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """Bytes on the fullest device of a replica: the model's `own` without its cache, and others' `beside` it.

    `cache` is the rest for the model's cache, `capacity` the limit of the engine; None without a limit.
    """

    own: int
    beside: int
    cache: int | None
    capacity: int | None


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
    memory: ServerMemory
    times: StepTimes
    basis: tuple[str, ...]
    usd_per_gpu_hour: float | None
    acceptance: tuple[float, ...] = ()
    tiles_per_image: int = 0
    tokens_per_tile: int = 0
    cache_link: CacheLink | None = None

    def replica(self, number: int, recorder: Recorder) -> Replica:
        """A fresh replica."""
        caching = self.settings.prefix_caching
        pools = [BlockPool(self.blocks_per_rank, self.law, caching=caching) for _ in range(self.num_caches)]
        ranks = [
            self._rank(f"{self.key}/{number}/{index}", pools[index % self.num_caches])
            for index in range(self.num_ranks)
        ]
        return Replica(number, ranks, self.times, recorder)

    @property
    def num_caches(self) -> int:
        """Caches of a replica: one for each rank of attention, which the micro-batches of a pipeline share."""
        return self.num_ranks // self.layout.pp

    def _rank(self, seed: str, pool: BlockPool) -> Rank:
        policy = POLICIES[self.defaults.policy](self.settings)
        return SpeculativeRank(pool, policy, self.acceptance, seed) if self.acceptance else Rank(pool, policy)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Other users of a model's GPUs: a draft, and `bytes_per_device` of others; `share` of the cache is its own."""

    draft: LayerGraph | None = None
    bytes_per_device: int = 0
    share: float = 1.0

    def besides(self, graph: LayerGraph, model: ModelDeployment, placement: Placement) -> Besides:
        """The bytes of all of them, and of a drafting module of the model itself."""
        return besides(graph, model, placement, self.draft, self.bytes_per_device, self.share)


ALONE = Neighbours()


def server_of(
    key: str,
    graph: LayerGraph,
    model: ModelDeployment,
    scheduler: SchedulerSpec,
    find: FindFile,
    neighbours: Neighbours = ALONE,
) -> Server:
    """One replica of a deployed model, planned and timed.

    Raises UserError, naming fields as `models.KEY.…`, for what cannot be planned, does not fit, or has no known time.
    """
    try:
        return _server_of(key, graph, model, scheduler, find, neighbours)
    except UserError as error:
        named = [_within(key, problem) for problem in error.problems]
        raise UserError(named) from None


def _within(key: str, problem: Problem) -> Problem:
    field = problem.path.lstrip("-")
    path = f"models.{key}.{field}" if field and field in ModelDeployment.model_fields else f"models.{key}"
    message = problem.message if path.endswith(field) else f"{problem.path}: {problem.message}"
    return Problem(message, path, problem.place, problem.hint)


def _server_of(
    key: str,
    graph: LayerGraph,
    model: ModelDeployment,
    scheduler: SchedulerSpec,
    find: FindFile,
    neighbours: Neighbours,
) -> Server:
    defaults = scheduler_of(model.engine)
    chosen = merged(scheduler, model.scheduler)
    deployment = Deployment.resolve(graph, plan_request(model, chosen))
    cluster = deployment.cluster
    assert cluster is not None, "a scenario names its GPUs"
    plan = plan_deployment(deployment)
    layout, placement = plan.layout, place(deployment.setting, plan.layout)
    settings = settings_of(defaults, chosen, cluster.hardware.usable.num_bytes)
    law, blocks, memory = _cache(model, placement, settings, neighbours.besides(graph, model, placement))
    if blocks < 1:
        raise _no_room(graph, model, memory)
    times = _times(graph, model, deployment, layout, find)
    times = _with_extras(times, graph, model, placement, neighbours)
    ranks = layout.ep * layout.pp * layout.dp
    basis = (
        f"{graph.name} on {model.gpus} as {layout}, {defaults.name} {defaults.version} ({defaults.source})",
        f"{blocks:,} blocks of {law.block_size} tokens on each of {ranks // layout.pp} rank(s), {_blocks_from(model)}",
        *times.basis,
        *_assumptions(layout, model),
    )
    vision = graph.model.vision
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
        memory,
        times,
        basis,
        model.usd_per_gpu_hour,
        () if model.speculation is None else model.speculation.acceptance,
        0 if vision is None else vision.max_tiles + (vision.global_tile and vision.max_tiles > 1),
        0 if vision is None else vision.num_tokens_per_tile,
        None if model.disaggregated is None else cache_link(model.disaggregated.link, placement, cluster),
    )


def _no_room(graph: LayerGraph, model: ModelDeployment, memory: ServerMemory) -> UserError:
    needed, limit = memory.own + memory.beside, memory.capacity or 0
    message = f"{graph.name} leaves no room for a cache on {model.gpus}: {needed:,} B of {limit:,} B are taken"
    if memory.beside:
        message += f", {memory.beside:,} B of them by what else is on these GPUs"
    return UserError([Problem(message, path="gpus", hint="more or larger GPUs, or a smaller quantization")])


def _blocks_from(model: ModelDeployment) -> str:
    return "given" if model.kv_blocks is not None else f"by the plan's free memory under engine {model.engine}"


def _with_extras(
    times: StepTimes, graph: LayerGraph, model: ModelDeployment, placement: Placement, neighbours: Neighbours
) -> StepTimes:
    """The times with drafts and image tiles. Raises UserError for drafts where times do not come from a spec."""
    if not isinstance(times, PlannedTimes):
        if model.speculation is not None:
            raise UserError([Problem("drafts are timed from specs only", path="speculation", hint="leave `times` out")])
        return times
    setting = placement.setting

    def extended(step: StepModel) -> PlannedTimes:
        draft = None
        if model.speculation is not None:
            drafted, module = len(model.speculation.acceptance), mtp_graph(graph)
            if neighbours.draft is not None:
                draft = draft_seconds(draft_model(step, neighbours.draft, setting), drafted)
            elif module is not None:
                draft = draft_seconds(module_model(step, module), drafted)
            else:
                draft = mtp_seconds(step, graph.num_layers, drafted)
        return PlannedTimes(step, draft, step.tile_seconds, extended)

    return extended(times.model)


def plan_request(model: ModelDeployment, scheduler: SchedulerSpec) -> PlanRequest:
    """Plan request of a deployed model, without limits of context and batch, which the simulation applies.

    Tokens and sequences of a step, if a scenario chooses them, determine the activations.
    """
    steps = {"prefill_chunk": scheduler.max_num_batched_tokens, "max_num_seqs": scheduler.max_num_seqs}
    asked = PlanRequest(
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
    return asked.changed(**{name: number for name, number in steps.items() if number is not None})


def _cache(
    model: ModelDeployment, placement: Placement, settings: Settings, besides: Besides
) -> tuple[CacheLaw, int, ServerMemory]:
    """The law of a rank's blocks, how many there are, and the memory: those of the stage with the least room."""
    engine, size = placement.setting.engine, settings.block_size_tokens
    least: tuple[int, CacheLaw, ServerMemory] | None = None
    for (stage, rows), use in zip(placement.stages, placement.uses(1, 1), strict=True):
        draft, draft_per_token = besides.of_draft(stage)
        memory = _memory_of(placement, use, besides.others + draft, besides.share)
        if not rows:
            least = least or (1 << 40, CacheLaw(size), memory)
            continue
        law = cache_law(rows, engine, size)
        size_bytes = _block_bytes(rows, placement, law) + draft_per_token * size // law.groups
        blocks = (memory.cache or 0) // size_bytes
        if least is None or blocks < least[0]:
            least = blocks, law, memory
    assert least is not None, "a layout has a stage"
    blocks, law, memory = least
    return law, blocks if model.kv_blocks is None else model.kv_blocks, memory


def _memory_of(placement: Placement, use: DeviceUse, beside: int, share: float) -> ServerMemory:
    """Memory of a device of a stage, and its rest for the cache."""
    own = use.total - use.cache
    if placement.budget is None:
        return ServerMemory(own, beside, None, None)
    limit = placement.budget.limit(use)
    free = int((limit - own - beside) * share)
    return ServerMemory(own, beside, max(0, free), limit)


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
    cluster, file = deployment.cluster, None if times.factors is None else str(find(times.factors))
    stepped = step_model(
        graph,
        deployment.setting.scheme,
        layout,
        machine=Machine(cluster.hardware, cluster.gpus_per_host),
        kv_dtype_bytes=deployment.setting.kv_dtype_bytes,
        efficiency=serving_efficiency(deployment.setting.engine.name, file),
        routing=read_routing(model.routing, graph),
    )
    return PlannedTimes(stepped)


def _kernel_times(
    graph: LayerGraph,
    model: ModelDeployment,
    times: KernelTimesSpec,
    deployment: Deployment,
    layout: Layout,
    find: FindFile,
) -> KernelStepTimes:
    """Tables of kernels, and for routed layers the experts that a step reaches and the time of the exchange.

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


def _assumptions(layout: Layout, model: ModelDeployment) -> tuple[str, ...]:
    """Assumptions about a layout's ranks."""
    lines = []
    if layout.num_devices > 1 and not any((model.tp, model.ep, model.pp, model.dp)):
        lines.append("a layout that is fastest for one request at a time; `l4spec plan --rate` finds one for a load")
    if layout.pp > 1:
        lines.append(f"{layout.pp} pipeline stages as {layout.pp} ranks in lockstep: micro-batches with one cache")
    if layout.ep > 1:
        lines.append(f"{layout.ep} expert-parallel ranks step together, the slowest sets the pace")
    if model.speculation is not None:
        shares = ", ".join(f"{share:g}" for share in model.speculation.acceptance)
        what = model.speculation.spec or "a further layer of the model"
        lines.append(f"drafts by {what}, accepted with {shares} by position: given, not measured here")
    return tuple(lines)
