"""Memory of the most loaded device against its budget: weights, cache, activations, engine overhead, training state.

A `Placement` is a setting on a layout with everything computed that does not depend on context and batch. Searches
ask it again and again, so asking is cheap.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.sharding.sequence import longest_run
from l4spec.units import ceil_div
from planners.catalog import Engine, Hardware
from planners.counts.kv_cache import CacheRow, cache_bytes, rows_of, state_bytes_of
from planners.counts.weights import Scheme
from planners.device.activations import ActivationRates, activation_rates, serving_bytes
from planners.device.engine_overhead import reserved_terms, uncovered_bytes
from planners.device.host_memory import HostMemory, Spill, moved_weights
from planners.device.profiled import ProfiledActivations, default_rows, profiled_activations
from planners.device.stages import PipelineStage, cache_counts, stages
from planners.device.training_state import OPTIMIZER_BYTES, StageState, TrainingState, TrainSetting, stage_state
from planners.plan_types import DeviceMemory, HostMemoryUse, MemoryTerm


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything about a deployment except layout, context and batch, which searches vary.

    `num_tiles` image tiles go through the vision tower of one device at once. With `train`, engine and cache play no
    part.
    """

    graph: LayerGraph
    scheme: Scheme
    engine: Engine
    hardware: Hardware | None
    kv_dtype_bytes: int
    memory_fraction: float | None
    prefill_chunk: int
    num_tiles: int = 0
    train: TrainSetting | None = None
    max_num_seqs: int | None = None
    """Rows that an engine samples at most; None for its default."""
    host: HostMemory | None = None
    """Memory of the host that takes what a single device has no room for."""


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """Bytes on one device of one pipeline stage."""

    weights: int
    cache: int
    activations: int
    reserved: int
    gradients: int = 0
    optimizer: int = 0
    gathered: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        state = self.weights + self.gradients + self.optimizer + self.gathered
        return state + self.cache + self.activations + self.reserved


@dataclass(frozen=True, slots=True)
class Budget:
    """What a device may hold: everything in `usable_bytes`, and what `covers` lists in `fraction` of it.

    `after_load`: the fraction is of what is left once all but the cache is there, and is for the cache alone.
    `uncovered_bytes` are reserved terms outside the fraction.
    """

    usable_bytes: int
    source: str
    fraction: float | None = None
    after_load: bool = False
    covers: frozenset[str] = frozenset()
    uncovered_bytes: int = 0

    def limit(self, use: DeviceUse) -> int:
        """Bytes that `use.total` may reach."""
        usable = self.usable_bytes
        if self.fraction is None:
            return usable
        if self.after_load:
            others = use.total - use.cache
            return min(usable, others + int(self.fraction * max(usable - others, 0)))
        spent = {"weights": use.weights, "activations": use.activations, "kv_cache": use.cache}
        outside = self.uncovered_bytes + sum(size for name, size in spent.items() if name not in self.covers)
        return min(usable, int(self.fraction * usable) + outside)

    @property
    def most_weights(self) -> int:
        """Bytes of weights above which nothing has room, whatever else is on the device."""
        if self.fraction is None or self.after_load or "weights" not in self.covers:
            return self.usable_bytes
        return min(self.usable_bytes, int(self.fraction * self.usable_bytes) + self.uncovered_bytes)

    def __str__(self) -> str:
        if self.fraction is None:
            return self.source
        whole = f"{self.fraction:g} of {self.usable_bytes:,} B ({self.source})"
        return f"{whole}, of what is free after loading" if self.after_load else whole


_EVERYTHING = frozenset({"weights", "activations", "kv_cache"})


def budget_of(setting: Setting, tp: int) -> Budget | None:
    """What a device of a tensor-parallel group may hold; None without hardware."""
    if setting.hardware is None:
        return None
    usable, share = setting.hardware.usable, setting.engine.memory
    if share is None or setting.train is not None:
        return Budget(usable.num_bytes, usable.source, setting.memory_fraction, covers=_EVERYTHING)
    fraction = share.fraction.value if setting.memory_fraction is None else setting.memory_fraction
    after_load = share.of == "free_after_load"
    outside = uncovered_bytes(setting.engine, tp)
    return Budget(usable.num_bytes, usable.source, fraction, after_load, frozenset(share.covers), outside)


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """A setting on a layout: pipeline stages with their cache rows, and what every device has in common."""

    setting: Setting
    layout: Layout
    stages: tuple[tuple[PipelineStage, tuple[CacheRow, ...]], ...]
    rates: ActivationRates
    profiled: ProfiledActivations | None
    reserved: int
    budget: Budget | None
    spill: Spill | None = None
    states: tuple[StageState, ...] = ()
    """What the device of each stage keeps in training."""

    def sequences(self, batch: int) -> int:
        """Sequences that the busiest device serves: the batch is divided among the dp * ep ranks."""
        return ceil_div(batch, self.layout.dp * self.layout.ep)

    def uses(self, context: int, batch: int) -> list[DeviceUse]:
        """What a device of each distinct stage holds for `batch` sequences of `context` tokens.

        Of a sequence whose tokens are divided it caches and runs those of the busiest rank.
        """
        setting, sequences = self.setting, self.sequences(batch)
        context = longest_run(setting.graph, context, self.layout.cp) if self.layout.cp > 1 else context
        if setting.train is not None:
            return [self._training_use(state.with_batch(context, sequences)) for state in self.states]
        uses = self._without_host(context, sequences)
        return uses if self.spill is None else [self._relieved(self.spill, uses[0], context, sequences)]

    def _without_host(self, context: int, sequences: int) -> list[DeviceUse]:
        """What serving holds where nothing is in the host's memory."""
        activations, profiled = self._activations(context, sequences), self.profiled
        return [
            DeviceUse(
                weights=stage.weights.total_bytes,
                cache=cache_bytes(rows, self.setting.engine, context, sequences),
                activations=activations if profiled is None else max(activations, profiled.of(stage)),
                reserved=self.reserved,
            )
            for stage, rows in self.stages
        ]

    def layers_on_host(self, context: int, batch: int) -> int:
        """How many layers' experts, or layers, lie in the host's memory: the least with which the device has room.

        Where no number gives it room, as many as the host's memory takes.
        """
        if self.spill is None:
            return 0
        sequences = self.sequences(batch)
        return self._spilled(self.spill, self._without_host(context, sequences)[0], context, sequences)

    def _spilled(self, spill: Spill, whole: DeviceUse, context: int, sequences: int) -> int:
        def has_room(num_layers: int) -> bool:
            return self.has_room(self._without(spill, whole, num_layers, context, sequences))

        most = spill.most(context, sequences)
        return min(most, bisect_left(range(most + 1), True, key=has_room))

    def _without(self, spill: Spill, whole: DeviceUse, num_layers: int, context: int, sequences: int) -> DeviceUse:
        weights = whole.weights - spill.weights[num_layers]
        return replace(whole, weights=weights, cache=spill.device_cache(num_layers, context, sequences))

    def _relieved(self, spill: Spill, whole: DeviceUse, context: int, sequences: int) -> DeviceUse:
        num_layers = self._spilled(spill, whole, context, sequences)
        return self._without(spill, whole, num_layers, context, sequences)

    def _activations(self, context: int, sequences: int) -> int:
        whole = context * sequences  # the ranks of a divided sequence go through it together, not chunk by chunk
        chunk = whole if self.layout.cp > 1 else min(self.setting.prefill_chunk, whole)
        tiles = self.setting.num_tiles
        return serving_bytes(self.rates, chunk_tokens=chunk, sequences=sequences, num_tiles=tiles)

    def _training_use(self, state: TrainingState) -> DeviceUse:
        return DeviceUse(
            weights=state.weights,
            cache=0,
            activations=state.activations,
            reserved=self.reserved,
            gradients=state.gradients,
            optimizer=state.optimizer,
            gathered=state.gathered,
        )

    def room(self, context: int, batch: int) -> int:
        """Bytes left on the fullest device, negative where they are missing; 0 without hardware."""
        budget = self.budget
        return 0 if budget is None else min(budget.limit(use) - use.total for use in self.uses(context, batch))

    def fits(self, context: int, batch: int) -> bool:
        """Whether every device holds what it must; True without hardware."""
        return self.room(context, batch) >= 0

    def has_room(self, use: DeviceUse) -> bool:
        """Whether a device holds `use`; True without hardware."""
        return self.budget is None or self.budget.limit(use) >= use.total

    def tightest(self, context: int, batch: int) -> DeviceUse:
        """The stage whose device has the least room left (without hardware: holds the most)."""
        budget, uses = self.budget, self.uses(context, batch)
        if budget is None:
            return max(uses, key=lambda use: use.total)
        return min(uses, key=lambda use: budget.limit(use) - use.total)


@kept_with(lambda setting: setting.graph, maxsize=1024)
def place(setting: Setting, layout: Layout) -> Placement:
    """The placement of a setting on a legal layout. Raises UserError where the scheme cannot pack a shard."""
    graph, tp = setting.graph, layout.tp
    stage_list = stages(graph, setting.scheme, tp, layout.ep, layout.pp)
    terms, state_bytes, train = _terms_besides(setting, tp), state_bytes_of(setting.engine), setting.train
    rates = activation_rates(graph, tp, layout.ep, divided=layout.cp > 1)
    return Placement(
        setting=setting,
        layout=layout,
        stages=tuple(
            (stage, cache_rows(graph, stage, tp, setting.kv_dtype_bytes, state_bytes)) for stage in stage_list
        ),
        rates=rates,
        profiled=None if train else _profiled(setting, layout, rates),
        reserved=sum(term.bytes for term in terms),
        budget=budget_of(setting, tp),
        spill=_spill(setting, setting.host, stage_list[0], state_bytes)
        if setting.host is not None and layout.num_devices == 1
        else None,
        states=tuple(stage_state(graph, train, layout, stage) for stage in stage_list) if train else (),
    )


def _spill(setting: Setting, host: HostMemory, stage: PipelineStage, state_bytes: int) -> Spill:
    """What a device's memory is relieved of; `stage` is the whole model."""
    graph = setting.graph

    def rows(layers: tuple[int, ...]) -> tuple[CacheRow, ...]:
        return _rows_of(graph, cache_counts(graph, layers), 1, setting.kv_dtype_bytes, state_bytes)

    whole, moved = stage.layers, moved_weights(graph, setting.scheme, host.part)
    numbers = range(len(moved)) if host.part == "layers" else (0,) * len(moved)
    on_device = tuple(rows(whole[number:]) for number in numbers)
    return Spill(host, setting.engine, moved, on_device, tuple(rows(whole[:number]) for number in numbers))


def cache_rows(
    graph: LayerGraph, stage: PipelineStage, tp: int, dtype_bytes: int, state_bytes: int = 0
) -> tuple[CacheRow, ...]:
    """Cache rows of one device of a stage."""
    return _rows_of(graph, stage.cache_counts, tp, dtype_bytes, state_bytes)


@kept_with(maxsize=1024)
def _rows_of(
    graph: LayerGraph, cache_counts: tuple[tuple[int, int], ...], tp: int, dtype_bytes: int, state_bytes: int
) -> tuple[CacheRow, ...]:
    layout, counts = Layout(tp=tp), dict[tuple[int, object], CacheRow]()
    for index, count in cache_counts:
        for row in rows_of(graph.groups[index], layout, dtype_bytes, state_bytes, count):
            known = counts.get((row.bytes_per_token, row.bound))
            merged = replace(row, count=count + (known.count if known else 0))
            counts[row.bytes_per_token, row.bound] = merged
    return tuple(counts.values())


def _terms_besides(setting: Setting, tp: int) -> tuple[MemoryTerm, ...]:
    return reserved_terms(setting.graph, setting.engine, setting.hardware, tp)


def _profiled(setting: Setting, layout: Layout, rates: ActivationRates) -> ProfiledActivations | None:
    run = setting.engine.profiling_run
    if run is None:
        return None
    rows = setting.max_num_seqs or default_rows(setting.engine.name, setting.hardware)
    return profiled_activations(setting.graph, layout, run, rates, chunk=setting.prefill_chunk, rows=rows)


def describe_device(placement: Placement, context: int, batch: int) -> DeviceMemory:
    """The tightest device's memory, term by term."""
    use, setting = placement.tightest(context, batch), placement.setting
    limit = None if placement.budget is None else placement.budget.limit(use)
    terms = (*_named_terms(placement, use), *_terms_besides(setting, placement.layout.tp))
    return DeviceMemory(
        weights_bytes=use.weights,
        kv_cache_bytes=use.cache,
        activation_bytes=use.activations,
        reserved_bytes=use.reserved,
        gradient_bytes=use.gradients,
        optimizer_bytes=use.optimizer,
        gathered_bytes=use.gathered,
        total_bytes=use.total,
        capacity_bytes=limit,
        capacity_source="" if placement.budget is None else str(placement.budget),
        headroom_bytes=None if limit is None else limit - use.total,
        terms=tuple(term for term in terms if term.bytes),
        unknown=_unknown(setting, placement.layout.tp),
    )


def describe_host(placement: Placement, context: int, batch: int) -> HostMemoryUse | None:
    """What is in the host's memory; None where none was given."""
    spill = placement.spill
    if spill is None:
        return None
    return spill.use(placement.layers_on_host(context, batch), context, placement.sequences(batch))


def _unknown(setting: Setting, tp: int) -> tuple[str, ...]:
    """Terms that nobody measured: of the engine, or what driver and context take on this hardware."""
    hardware, engine = setting.hardware, setting.engine
    of_engine = () if setting.train else engine.unmeasured_for(tp)
    if engine.memory is not None or hardware is None or hardware.memory.free_before_load is not None:
        return of_engine
    return (*of_engine, "driver_and_context")


def _named_terms(placement: Placement, use: DeviceUse) -> tuple[MemoryTerm, ...]:
    setting, scheme = placement.setting, placement.setting.scheme
    return (
        MemoryTerm(
            name="weights",
            bytes=use.weights,
            origin="exact",
            source=scheme.table.source,
            arithmetic=f"{scheme.name}, {placement.layout}",
        ),
        MemoryTerm(
            name="kv cache",
            bytes=use.cache,
            origin="exact",
            source=setting.engine.source,
            arithmetic=setting.engine.name,
        ),
        *(() if setting.train is None else _training_terms(setting.train, use)),
        _activation_term(placement, use),
    )


def _training_terms(train: TrainSetting, use: DeviceUse) -> tuple[MemoryTerm, ...]:
    """What training keeps besides weights: bytes a parameter times the parameters whose state is on the device."""
    zero, source = f"ZeRO stage {train.zero_stage}", "planners/device/training_state.py"
    gradient, state = train.gradient_bytes, OPTIMIZER_BYTES[train.optimizer]
    texts = {
        "gradients": (use.gradients, f"{gradient} B × {use.gradients // gradient:,} parameters of the device, {zero}"),
        "optimizer": (use.optimizer, f"{state} B of {train.optimizer} × {use.optimizer // state:,} parameters, {zero}"),
        "gathered": (use.gathered, f"whole tensors of the blocks at work, {zero}"),
    }
    return tuple(
        MemoryTerm(name=name, bytes=size, origin="exact", source=source, arithmetic=text)
        for name, (size, text) in texts.items()
    )


def _activation_term(placement: Placement, use: DeviceUse) -> MemoryTerm:
    """By formula, unless the engine's own logs show more."""
    term = MemoryTerm(
        name="activations",
        bytes=use.activations,
        origin="exact",
        source="planners/device/activations.py",
        arithmetic=f"widest: {placement.rates.widest}",
    )
    run, profiled = placement.setting.engine.profiling_run, placement.profiled
    if run is None or profiled is None or use.activations not in (profiled.first, profiled.last):
        return term
    return term.model_copy(
        update={
            "origin": "calibrated",
            "spread": (
                round(use.activations * (1 - run.largest_error)),
                round(use.activations * (1 + run.largest_error)),
            ),
            "source": "; ".join(dict.fromkeys((run.bytes_per_logit.source, run.constant.source))),
            "arithmetic": profiled.arithmetic,
        }
    )
