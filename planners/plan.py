"""Stage 6: `plan`, from a layer graph and a deployment to a `Plan`."""

from dataclasses import dataclass
from functools import lru_cache

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph
from planners.catalog import engine as engine_of
from planners.catalog import quantization as quantization_of
from planners.cluster import Cluster, parse_cluster
from planners.communication import communication
from planners.flops import count_flops
from planners.kv_cache import cache_dtype_bytes, plan_cache
from planners.memory import Setting, describe_device
from planners.params import count_params
from planners.plan_types import (
    ClusterInfo,
    Deployment,
    DeviceMemory,
    IllegalLayout,
    LayoutRow,
    Mode,
    Objective,
    Params,
    Plan,
)
from planners.search import Pinned, choose, layouts_for, row_of, why_not
from planners.suggestions import suggest
from planners.training import OPTIMIZER_BYTES, TrainSetting
from planners.weights import scheme_of, weigh

DEFAULT_CONTEXT = 8192
DEFAULT_PREFILL_CHUNK = 8192
MAX_DEGREE = 1 << 20


def plan(
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
    engine: str = "ideal",
    objective: Objective = "balanced",
    mode: Mode = "serve",
    num_tiles: int = 0,
    prefill_chunk: int = DEFAULT_PREFILL_CHUNK,
    memory_fraction: float | None = None,
    train: TrainSetting | None = None,
) -> Plan:
    """What the model costs and, with `gpus` (`8xH100`), whether and how it fits.

    `context` counts tokens a sequence (default 8,192 or the model's shorter limit, never silently its max_seq_len) and
    `batch` sequences over the whole deployment. Degrees left out are chosen by `objective`; without `gpus` they are 1
    and nothing limits memory. `mode="train"` plans weights, gradients, optimizer states and saved activations by
    `train`. Raises UserError for what cannot be planned: unknown names, degrees whose product is not the number of
    GPUs, layouts the model does not allow, schemes that cannot pack a tensor.
    """
    asked = _Asked(graph, context, batch, Pinned(tp, ep, pp, dp), objective, gpus)
    asked.check(num_tiles, prefill_chunk, memory_fraction)
    cluster = parse_cluster(gpus) if gpus is not None else None
    setting = Setting(
        graph=graph,
        scheme=scheme_of(quantization_of(quantization)),
        engine=engine_of(engine),
        hardware=cluster.hardware if cluster else None,
        kv_dtype_bytes=cache_dtype_bytes(kv_dtype),
        memory_fraction=memory_fraction,
        prefill_chunk=prefill_chunk,
        num_tiles=num_tiles,
        train=_checked_train(train or TrainSetting()) if mode == "train" else None,
    )
    weights = weigh(graph, setting.scheme)
    rows, illegal = _rows(setting, cluster, asked)
    gpus_per_host = cluster.gpus_per_host if cluster else MAX_DEGREE
    chosen = choose(rows, objective, gpus_per_host, training=mode == "train")
    memory = describe_device(setting, chosen.layout, asked.tokens, batch)
    fits = chosen.fits if cluster else None
    return Plan(
        model=graph.name,
        estimated=graph.model.estimated,
        deployment=_deployment(setting, asked, mode, kv_dtype),
        cluster=_cluster_info(cluster, gpus),
        params=_params(graph),
        flops=_flops(graph, asked.tokens, batch),
        weights=weights,
        kv_cache=plan_cache(graph, setting.engine, dtype=kv_dtype, context=asked.tokens, batch=batch),
        layout=chosen.layout,
        layouts=rows,
        illegal_layouts=illegal,
        memory_per_device=memory,
        communication=communication(graph, chosen.layout),
        fits=fits,
        reasons=_reasons(memory, chosen, asked),
        max_context=chosen.max_context if cluster else None,
        max_batch=chosen.max_batch if cluster else None,
        suggestions=suggest(setting, cluster, asked.tokens, batch, asked.pinned) if cluster and not fits else (),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the user asked for, before anything is looked up."""

    graph: LayerGraph
    context: int | None
    batch: int
    pinned: Pinned
    objective: str
    gpus: str | None

    @property
    def max_seq_len(self) -> int:
        return self.graph.model.text.stack.width.max_seq_len

    @property
    def tokens(self) -> int:
        return min(DEFAULT_CONTEXT, self.max_seq_len) if self.context is None else self.context

    def check(self, num_tiles: int, prefill_chunk: int, memory_fraction: float | None) -> None:
        """Raise UserError with everything that is out of range."""
        problems = [
            Problem(f"must be between 1 and {MAX_DEGREE:,}, found {degree}", path=name)
            for name in ("tp", "ep", "pp", "dp")
            if (degree := getattr(self.pinned, name)) is not None and not 1 <= degree <= MAX_DEGREE
        ]
        if not 1 <= self.batch <= MAX_DEGREE:
            problems.append(Problem(f"must be between 1 and {MAX_DEGREE:,}, found {self.batch}", path="batch"))
        if not 1 <= self.tokens <= self.max_seq_len:
            limit = f"between 1 and the model's max_seq_len of {self.max_seq_len:,}"
            hint = "set a larger text.max_seq_len to plan beyond it"
            problems.append(Problem(f"must be {limit}, found {self.tokens:,}", path="context", hint=hint))
        if not 1 <= prefill_chunk <= 1 << 30:
            problems.append(
                Problem(f"must be a positive number of tokens, found {prefill_chunk}", path="prefill_chunk")
            )
        if memory_fraction is not None and not 0 < memory_fraction <= 1:
            problems.append(Problem(f"must be above 0 and at most 1, found {memory_fraction}", path="memory_fraction"))
        if not 0 <= num_tiles <= 1 << 20 or (num_tiles and self.graph.model.vision is None):
            problems.append(
                Problem(f"needs a model with vision and at least 0 tiles, found {num_tiles}", path="num_tiles")
            )
        if problems:
            raise UserError(problems)


def _checked_train(train: TrainSetting) -> TrainSetting:
    if train.optimizer not in OPTIMIZER_BYTES:
        raise UserError(f"unknown optimizer '{train.optimizer}'", hint=f"one of: {', '.join(OPTIMIZER_BYTES)}")
    if train.zero_stage not in (0, 1, 2, 3) or train.checkpointing not in ("none", "full") or train.micro_batch < 1:
        raise UserError("zero_stage must be 0 to 3, checkpointing none or full, micro_batch at least 1")
    return train


def _rows(
    setting: Setting, cluster: Cluster | None, asked: _Asked
) -> tuple[tuple[LayoutRow, ...], tuple[IllegalLayout, ...]]:
    if cluster is None:
        layout = asked.pinned.alone()
        reason = why_not(setting, layout)
        if reason:
            raise UserError([Problem(reason, path=str(layout))])
        return (row_of(setting, layout, asked.tokens, asked.batch),), ()
    legal, illegal = layouts_for(setting, cluster.num_gpus, asked.pinned)
    if not legal:
        raise UserError(_no_layout(cluster, asked.pinned, illegal))
    return tuple(row_of(setting, layout, asked.tokens, asked.batch) for layout in legal), illegal


def _no_layout(cluster: Cluster, pinned: Pinned, illegal: tuple[IllegalLayout, ...]) -> list[Problem]:
    if not illegal:
        layout = pinned.alone()
        product = " x ".join(f"{axis}={getattr(layout, axis)}" for axis in ("tp", "ep", "pp", "dp"))
        message = f"{product} = {layout.num_devices} devices do not divide the {cluster.num_gpus} GPUs of {cluster}"
        return [Problem(message, hint="the product of the degrees must be the number of GPUs")]
    reasons = dict.fromkeys(row.reason for row in illegal)
    return [
        Problem(f"no layout on {cluster} is legal: {reason}", hint="choose other degrees or GPUs") for reason in reasons
    ]


def _reasons(memory: DeviceMemory, chosen: LayoutRow, asked: _Asked) -> tuple[str, ...]:
    if memory.capacity_bytes is None:
        return ("no GPUs were given, so nothing limits memory",)
    state = "fits" if chosen.fits else "does not fit"
    need = f"{state}: the fullest device needs {memory.total_bytes:,} B of {memory.capacity_bytes:,} B"
    reasons = [f"{need} with {chosen.layout}, context {asked.tokens:,}, batch {asked.batch:,}"]
    if memory.weights_bytes > memory.capacity_bytes:
        reasons.append("the weights alone exceed the device")
    return tuple(reasons)


def _deployment(setting: Setting, asked: _Asked, mode: Mode, kv_dtype: str) -> Deployment:
    share = setting.engine.memory.fraction.value if setting.engine.memory else 1.0
    train = setting.train
    return Deployment(
        mode=mode,
        context=asked.tokens,
        context_origin="default" if asked.context is None else "given",
        batch=asked.batch,
        quantization=setting.scheme.name,
        kv_dtype=kv_dtype,
        engine=setting.engine.name,
        objective=asked.objective,
        num_tiles=setting.num_tiles,
        prefill_chunk=setting.prefill_chunk,
        memory_fraction=setting.memory_fraction or share,
        optimizer=train.optimizer if train else None,
        zero_stage=train.zero_stage if train else None,
        activation_checkpointing=train.checkpointing if train else None,
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


@lru_cache(maxsize=64)
def _params(graph: LayerGraph) -> Params:
    return count_params(graph)


_flops = lru_cache(maxsize=1024)(lambda graph, context, batch: count_flops(graph, context=context, batch=batch))
