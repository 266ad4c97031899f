"""Predictions of published memory readings of engines: weights, activations, memory outside torch, the cache pool."""

import re
from dataclasses import dataclass

from l4spec.errors import UserError
from l4spec.sharding.layout import Layout
from l4spec.units import GiB
from planners.catalog import engine, hardware, quantization
from planners.counts.kv_cache import cache_dtype_bytes
from planners.counts.weights import scheme_of
from planners.device.engine_overhead import rope_table_bytes
from planners.device.memory import Placement, Setting, place
from planners.evidence.deployments import graph_of, hardware_of, model_of
from planners.evidence.rows import Row

POOLS = ("kv_pool_per_gpu", "kv_cache_size_tokens", "max_concurrency_at_8192")
METRICS = ("weights_per_gpu", "activation_peak_per_gpu", "non_torch_per_gpu", "non_kv_total_per_gpu", *POOLS)
_NOT_MEASURED = "nobody measured memory outside torch for this version and degree"
_REASONS = {
    "cuda_graph_estimate_per_gpu": "the engine logs this estimate and reserves nothing for it",
    "num_gpu_blocks": "blocks of hybrid caches are in a table of their own (planners/evidence/hybrid_caches.csv)",
    "initial_free_memory": "memory that the driver takes is no plan's number",
}
_SERVED = 8192
"""Tokens of a sequence in `max_concurrency_at_8192`."""
_CHUNK = 8192
"""vLLM's default of max_num_batched_tokens on these devices."""
_ROOM_FOR_WEIGHTS = 0.8
"""Share of a device for weights. Unpublished degrees are taken as the fewest ranks whose weights fit into it."""


@dataclass(frozen=True, slots=True)
class MemoryCase:
    """A row's deployment; `utilization` is the share of memory that the engine was given, where it was published."""

    placement: Placement
    utilization: float | None


def predict_memory(row: Row) -> float | str:
    """The row's figure in its unit, or why there is none."""
    if row.metric == "kv_needed_per_gpu":
        return _cache_of_one_sequence(row)
    if row.metric not in METRICS:
        return _REASONS.get(row.metric, "the share of memory that the engine was given is not published in the row")
    case = _case(row)
    if isinstance(case, str):
        return case
    if row.metric == "non_torch_per_gpu":
        size = non_torch(case.placement)
        return "nobody measured it for this version and degree" if size is None else size / GiB
    use, setting = case.placement.uses(_CHUNK, 1), case.placement.setting
    if row.metric == "weights_per_gpu":
        return (max(stage.weights for stage in use) + _rope_table(setting)) / GiB  # engines log them together
    if row.metric == "activation_peak_per_gpu":
        return use[0].activations / GiB  # the log of the first stage
    return _predict_pool(row, case)


def _predict_pool(row: Row, case: MemoryCase) -> float | str:
    """The cache pool, what it holds, or all that is outside of it."""
    if row.metric == "non_kv_total_per_gpu":
        used = _outside_pool(case.placement)
        return _NOT_MEASURED if used is None else used / GiB
    pool = _pool(case)
    if isinstance(pool, str) or row.metric == "kv_pool_per_gpu":
        return pool if isinstance(pool, str) else pool / GiB
    token = sum(cached.bytes_per_token * cached.count for _, rows in case.placement.stages for cached in rows)
    return pool / token / (_SERVED if row.metric == "max_concurrency_at_8192" else 1)


def _cache_of_one_sequence(row: Row) -> float | str:
    """GiB of a sequence's cache on one rank, every layer keeping every token, as these reports have it."""
    name, tokens, tp = model_of(row), row.number("isl"), row.number("tp")
    if name is None or tokens is None or tp is None:
        return "model, lengths or degrees are not published in the row"
    setting = Setting(
        graph=graph_of(name),
        scheme=scheme_of(quantization("bf16")),
        engine=engine("full"),
        hardware=None,
        kv_dtype_bytes=cache_dtype_bytes(row.precision_kv),
        memory_fraction=None,
        prefill_chunk=_CHUNK,
    )
    return place(setting, Layout(tp=tp)).uses(tokens, 1)[0].cache / GiB


def _outside_pool(placement: Placement) -> int | None:
    """Bytes of all but the cache; None where memory outside torch was not measured."""
    use, outside = placement.uses(_CHUNK, 1)[0], non_torch(placement)
    return None if outside is None else use.weights + _rope_table(placement.setting) + use.activations + outside


def non_torch(placement: Placement) -> int | None:
    """Bytes outside torch on this layout; None without a measurement."""
    terms = placement.setting.engine.reserved_for(placement.layout.tp)
    return next((term.num_bytes for term in terms if term.kind == "non_torch"), None)


def _pool(case: MemoryCase) -> float | str:
    used, device = _outside_pool(case.placement), case.placement.setting.hardware
    if case.utilization is None or device is None:
        return "the share of memory that the engine was given is not published in the row"
    if used is None:
        return _NOT_MEASURED
    return case.utilization * device.usable.num_bytes - used


def _rope_table(setting: Setting) -> int:
    return rope_table_bytes(setting.graph) if setting.engine.rope_table else 0


def _case(row: Row) -> MemoryCase | str:
    name, device, version = model_of(row), hardware_of(row), re.search(r"vLLM ([0-9.]+)", row.notes)
    if name is None or device is None or version is None:
        return "model, hardware or version is not in the catalogue"
    try:
        scheme = scheme_of(quantization(row.precision_weights))
        dtype_bytes = cache_dtype_bytes(row.precision_kv)
    except UserError as error:
        return str(error.problems[0])
    chunk, share = row.noted(r"max_num_batched_tokens (\d+)", _CHUNK), re.search(r"utilization ([0-9.]+)", row.notes)
    setting = Setting(
        graph=graph_of(name),
        scheme=scheme,
        engine=engine(f"vllm@{version[1]}"),
        hardware=hardware(device),
        kv_dtype_bytes=dtype_bytes,
        memory_fraction=None,
        prefill_chunk=chunk,
        max_num_seqs=None if int(version[1].split(".")[1]) >= _FIRST_V1 else 256,
    )
    placement = place(setting, Layout(tp=row.number("tp") or _fewest(setting), pp=row.number("pp") or 1))
    return MemoryCase(placement, float(share[1]) if share else None)


_FIRST_V1 = 8
"""From 0.8 on the default of max_num_seqs is the device's; before it was 256 (engine arguments, v0.6.4)."""


def _fewest(setting: Setting) -> int:
    device = setting.hardware
    assert device is not None, "rows name their hardware"
    room = _ROOM_FOR_WEIGHTS * device.usable.num_bytes
    degrees = (tp for tp in (1, 2, 4, 8) if place(setting, Layout(tp=tp)).uses(1, 1)[0].weights <= room)
    return next(degrees, 8)
