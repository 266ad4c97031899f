"""What the fullest device holds: weights, cache, activations, what the engine keeps besides, and training state."""

from dataclasses import dataclass
from functools import lru_cache

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.positions import Rope
from planners.activations import activation_rates, serving_bytes
from planners.catalog import Engine, Hardware
from planners.kv_cache import CacheRow, bytes_per_token, cache_bytes
from planners.plan_types import DeviceMemory, Layout, MemoryTerm
from planners.sharding import Stage, stages
from planners.training import TrainSetting, training_state
from planners.weights import Scheme


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything about a deployment except layout, context and batch, which searches vary."""

    graph: LayerGraph
    scheme: Scheme
    engine: Engine
    hardware: Hardware | None
    kv_dtype_bytes: int
    memory_fraction: float | None
    prefill_chunk: int
    num_tiles: int = 0
    train: TrainSetting | None = None


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Bytes on one device of one pipeline stage."""

    weights: int
    cache: int
    activations: int
    reserved: int
    gradients: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.activations + self.reserved + self.gradients + self.optimizer


def sequences_per_device(batch: int, layout: Layout) -> int:
    """Sequences that the busiest device serves: the batch is divided among the dp * ep ranks."""
    return -(-batch // (layout.dp * layout.ep))


def fullest_device(setting: Setting, layout: Layout, context: int, batch: int) -> DeviceUse:
    """The stage whose device holds the most."""
    uses = [device_use(setting, layout, stage, context, batch) for stage in _stages(setting, layout)]
    return max(uses, key=lambda use: use.total)


def _stages(setting: Setting, layout: Layout) -> tuple[Stage, ...]:
    return stages(setting.graph, setting.scheme, layout.tp, layout.ep, layout.pp)


def device_use(setting: Setting, layout: Layout, stage: Stage, context: int, batch: int) -> DeviceUse:
    """What one device of this stage holds."""
    sequences = sequences_per_device(batch, layout)
    reserved = reserved_bytes(setting, layout)
    if setting.train is not None:
        state = training_state(setting.graph, setting.train, layout, stage, context, sequences)
        return DeviceUse(state.weights, 0, state.activations, reserved, state.gradients, state.optimizer)
    rows = _cache_rows(setting.graph, stage.cache_counts, layout.tp, setting.kv_dtype_bytes)
    return DeviceUse(
        weights=stage.weights.total_bytes,
        cache=cache_bytes(rows, setting.engine, context, sequences),
        activations=_activations(setting, layout, context, sequences),
        reserved=reserved,
    )


def _activations(setting: Setting, layout: Layout, context: int, sequences: int) -> int:
    rates = activation_rates(setting.graph, layout.tp, layout.ep)
    tiles = -(-setting.num_tiles * sequences // max(sequences, 1)) if sequences else 0
    chunk = min(setting.prefill_chunk, context * sequences)
    formula = serving_bytes(rates, chunk_tokens=chunk, sequences=sequences, num_tiles=tiles)
    return max([formula, *_readings(setting.engine, layout.tp, "activations")])


def _readings(engine: Engine, tp: int, kind: str) -> list[int]:
    return [term.num_bytes for term in engine.reserved_for(tp) if term.kind == kind]


@lru_cache(maxsize=4096)
def _cache_rows(
    graph: LayerGraph, counts: tuple[tuple[int, int], ...], tp: int, dtype_bytes: int
) -> tuple[CacheRow, ...]:
    layout = Layout(tp=tp)
    return tuple(
        CacheRow(
            bytes_per_token(graph.groups[index], layout, dtype_bytes),
            graph.groups[index].declaration.cache[0].bound,
            count,
        )
        for index, count in counts
    )


def stage_cache_rows(setting: Setting, layout: Layout) -> tuple[CacheRow, ...]:
    """Cache rows of the first stage's device."""
    return _cache_rows(setting.graph, _stages(setting, layout)[0].cache_counts, layout.tp, setting.kv_dtype_bytes)


def reserved_bytes(setting: Setting, layout: Layout) -> int:
    """Bytes on each device for anything but weights, cache and activations, inside the engine's share."""
    return sum(term.bytes for term in reserved_terms(setting.graph, setting.engine, setting.hardware, layout.tp))


@lru_cache(maxsize=2048)
def reserved_terms(graph: LayerGraph, engine: Engine, hardware: Hardware | None, tp: int) -> tuple[MemoryTerm, ...]:
    """The terms behind `reserved_bytes`: exact where a formula gives them, else calibrated with their spread."""
    terms = []
    if engine.rope_table and (table := rope_table_bytes(graph)):
        terms.append(
            MemoryTerm(
                name="rope table", bytes=table, origin="exact", source=engine.source, arithmetic=_rope_arithmetic(graph)
            )
        )
    covered = ("non_torch", "cuda_graphs") if engine.memory is None else engine.memory.covers
    for term in engine.reserved_for(tp):
        if term.kind in ("non_torch", "cuda_graphs") and term.kind in covered:
            terms.append(
                MemoryTerm(
                    name=term.kind.replace("_", " "),
                    bytes=term.num_bytes,
                    origin="calibrated",
                    spread=term.spread,
                    source="; ".join(term.sources),
                    arithmetic=term.note,
                )
            )
    if engine.memory is None and hardware is not None and hardware.memory.free_before_load is not None:
        free = hardware.memory.free_before_load
        terms.append(
            MemoryTerm(
                name="driver and context",
                bytes=hardware.usable.num_bytes - free.value,
                origin="calibrated",
                source=free.source,
                arithmetic="physical - free before load",
            )
        )
    return tuple(terms)


def rope_table_bytes(graph: LayerGraph) -> int:
    """A cos/sin table of max_seq_len positions for each distinct rotation of the text: rotary_dim elements of 2 bytes."""
    positions = graph.model.text.stack.width.max_seq_len
    return sum(positions * width * 2 for _, width in _rotations(graph))


def _rope_arithmetic(graph: LayerGraph) -> str:
    positions = graph.model.text.stack.width.max_seq_len
    return " + ".join(f"{positions:,} positions x {width} x 2 B" for _, width in _rotations(graph))


@lru_cache(maxsize=64)
def _rotations(graph: LayerGraph) -> frozenset[tuple[Rope, int]]:
    found = set()
    for group in graph.groups:
        position = getattr(group.first.spec, "position", None)
        if isinstance(position, Rope) and group.first.scope == "text":
            spec = group.first.spec
            head = getattr(spec, "head_dim", None) or getattr(spec, "qk_rope_head_dim", 0)
            found.add((position, position.rotary_dim or head))
    return frozenset(found)


def capacity(setting: Setting, layout: Layout, use: DeviceUse) -> tuple[int, str] | None:
    """Bytes that `use.total` may reach on one device, and where that comes from; None without hardware."""
    if setting.hardware is None:
        return None
    usable, share = setting.hardware.usable, setting.engine.memory
    fraction = setting.memory_fraction
    if fraction is None and share is not None:
        fraction = share.fraction.value
    if fraction is None:
        return usable.num_bytes, usable.source
    text = f"{fraction:g} of {usable.num_bytes:,} B ({usable.source})"
    if share is not None and share.of == "free_after_load":
        others = use.total - use.cache
        return others + int(fraction * max(usable.num_bytes - others, 0)), f"{text}, of what is free after loading"
    outside = sum(t.num_bytes for t in setting.engine.reserved_for(layout.tp) if share and t.kind not in share.covers)
    return min(int(fraction * usable.num_bytes), usable.num_bytes - outside), text


def fits(setting: Setting, layout: Layout, context: int, batch: int) -> bool:
    """Whether the fullest device holds what it must; True without hardware, where nothing limits it."""
    for stage in _stages(setting, layout):
        use = device_use(setting, layout, stage, context, batch)
        limit = capacity(setting, layout, use)
        if limit is not None and use.total > limit[0]:
            return False
    return True


def describe_device(setting: Setting, layout: Layout, context: int, batch: int) -> DeviceMemory:
    """The fullest device's memory, term by term."""
    use = fullest_device(setting, layout, context, batch)
    limit = capacity(setting, layout, use)
    terms = (
        *_named_terms(setting, layout, use),
        *reserved_terms(setting.graph, setting.engine, setting.hardware, layout.tp),
    )
    return DeviceMemory(
        weights_bytes=use.weights,
        kv_cache_bytes=use.cache,
        activation_bytes=use.activations,
        reserved_bytes=use.reserved,
        gradient_bytes=use.gradients,
        optimizer_bytes=use.optimizer,
        total_bytes=use.total,
        capacity_bytes=None if limit is None else limit[0],
        capacity_source="" if limit is None else limit[1],
        headroom_bytes=None if limit is None else limit[0] - use.total,
        terms=tuple(term for term in terms if term.bytes),
    )


def _named_terms(setting: Setting, layout: Layout, use: DeviceUse) -> tuple[MemoryTerm, ...]:
    scheme, readings = setting.scheme, _readings(setting.engine, layout.tp, "activations")
    calibrated = bool(readings) and setting.train is None and use.activations == max(readings)
    reading = next((t for t in setting.engine.reserved_for(layout.tp) if t.kind == "activations"), None)
    return (
        MemoryTerm(
            name="weights",
            bytes=use.weights,
            origin="exact",
            source=scheme.table.source,
            arithmetic=f"{scheme.name}, {layout}",
        ),
        MemoryTerm(
            name="kv cache",
            bytes=use.cache,
            origin="exact",
            source=setting.engine.source,
            arithmetic=setting.engine.name,
        ),
        MemoryTerm(name="gradients", bytes=use.gradients, origin="exact", source="planners/training.py"),
        MemoryTerm(name="optimizer", bytes=use.optimizer, origin="exact", source="planners/training.py"),
        MemoryTerm(
            name="activations",
            bytes=use.activations,
            origin="calibrated" if calibrated else "exact",
            spread=reading.spread if calibrated and reading else None,
            source="; ".join(reading.sources) if calibrated and reading else "planners/activations.py",
            arithmetic=reading.note
            if calibrated and reading
            else f"widest: {activation_rates(setting.graph, layout.tp, layout.ep).widest}",
        ),
    )
