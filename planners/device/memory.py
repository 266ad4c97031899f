"""Memory of the most loaded device against its budget: weights, cache, activations, engine overhead, training state.

A `Placement` is a setting on a layout with everything computed that does not depend on context and batch. Searches
ask it again and again, so asking is cheap.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from l4spec.graph.build import mtp_graph
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.sharding.sequence import longest_run
from l4spec.units import ceil_div
from planners.catalog import Engine, Hardware
from planners.counts.kv_cache import CacheRow, cache_bytes, model_rows, rows_of, state_bytes_of
from planners.counts.weights import Scheme
from planners.device.activations import ActivationRates, activation_rates, serving_bytes
from planners.device.engine_overhead import reserved_terms, uncovered_bytes
from planners.device.stages import PipelineStage, cache_counts, stages
from planners.plan_types import MemoryTerm

if TYPE_CHECKING:
    from planners.device.host_memory import HostMemory, Spill
    from planners.device.profiled import ProfiledActivations
    from planners.device.training_state import StageState, TrainingState, TrainSetting


class Setting(NamedTuple):
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
    train: "TrainSetting | None" = None
    max_num_seqs: int | None = None
    """Rows that an engine samples at most; None for its default."""
    host: "HostMemory | None" = None
    """Host memory to which a single device offloads."""
    with_module: bool = False
    """Include weights and cache of the declared module of multi-token prediction, which drafts."""

    @property
    def virtual_stages(self) -> int:
        """Chunks of layers of each pipeline stage: more than one in training with an interleaved pipeline."""
        return 1 if self.train is None else self.train.virtual_stages


@dataclass(slots=True)  # frozen, it would take five times as long to make
class DeviceUse:
    """Bytes on one device of one pipeline stage; `module_weights` and `module_cache` are those of a drafting module."""

    weights: int
    cache: int
    activations: int
    reserved: int
    gradients: int = 0
    optimizer: int = 0
    gathered: int = 0
    module_weights: int = 0
    module_cache: int = 0
    reference_weights: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        state = self.weights + self.gradients + self.optimizer + self.gathered
        return state + self.cache + self.activations + self.reserved


class Budget(NamedTuple):
    """Memory limit of a device: all terms in `usable_bytes`, and those that `covers` lists in `fraction` of it.

    `after_load`: the fraction is of the memory left once all but the cache is there, and is for the cache alone.
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
    """Memory limit of a device in a tensor-parallel group; None without hardware."""
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
    """A setting on a layout: pipeline stages with their cache rows, and properties common to all devices."""

    setting: Setting
    layout: Layout
    stages: tuple[tuple[PipelineStage, tuple[CacheRow, ...]], ...]
    rates: ActivationRates
    profiled: "ProfiledActivations | None"
    reserved: int
    budget: Budget | None
    spill: "Spill | None" = None
    states: "tuple[StageState, ...]" = ()
    """Training state of the device of each stage."""
    module: tuple[int, tuple[CacheRow, ...]] | None = None
    """Bytes of the weights of a drafting module on a device of the last stage, and its cache."""

    def sequences(self, batch: int) -> int:
        """Sequences that the busiest device serves: the batch is divided among the dp * ep ranks."""
        return ceil_div(batch, self.layout.dp * self.layout.ep)

    @kept_with(lambda placement: placement.setting.graph, maxsize=64)
    def uses(self, context: int, batch: int) -> tuple[DeviceUse, ...]:
        """Memory use of a device of each distinct stage for `batch` sequences of `context` tokens.

        For a sequence whose tokens are divided, it has those of the busiest rank.
        """
        setting, sequences = self.setting, self.sequences(batch)
        if setting.train is not None:
            tokens = ceil_div(context, self.layout.cp)
            return tuple(self._training_use(state.with_batch(tokens, sequences)) for state in self.states)
        context = longest_run(setting.graph, context, self.layout.cp) if self.layout.cp > 1 else context
        uses = self._without_host(context, sequences)
        return uses if self.spill is None else (self._relieved(self.spill, uses[0], context, sequences),)

    def _without_host(self, context: int, sequences: int) -> tuple[DeviceUse, ...]:
        """Memory use in serving with nothing in the host's memory."""
        activations, profiled = self._activations(context, sequences), self.profiled
        engine, reserved, uses = self.setting.engine, self.reserved, []
        for stage, rows in self.stages:
            module, cached = self._module(context, sequences) if stage.last else (0, 0)
            use = DeviceUse(
                weights=stage.weights.total_bytes + module,
                cache=cache_bytes(rows, engine, context, sequences) + cached,
                activations=activations if profiled is None else max(activations, profiled.of(stage)),
                reserved=reserved,
                module_weights=module,
                module_cache=cached,
            )
            uses.append(use)
        return tuple(uses)

    def _module(self, context: int, sequences: int) -> tuple[int, int]:
        """Bytes of a drafting module's weights and cache."""
        if self.module is None:
            return 0, 0
        weights, rows = self.module
        return weights, cache_bytes(rows, self.setting.engine, context, sequences)

    def layers_on_host(self, context: int, batch: int) -> int:
        """Number of layers in the host's memory, whole or by their experts: the fewest with which the device has room.

        If no number gives it room, as many as the host's memory takes.
        """
        if self.spill is None:
            return 0
        sequences = self.sequences(batch)
        return self._spilled(self.spill, self._without_host(context, sequences)[0], context, sequences)

    def _spilled(self, spill: "Spill", whole: DeviceUse, context: int, sequences: int) -> int:
        def has_room(num_layers: int) -> bool:
            return self.has_room(self._without(spill, whole, num_layers, context, sequences))

        most = spill.most(context, sequences)
        return min(most, bisect_left(range(most + 1), True, key=has_room))

    def _without(self, spill: "Spill", whole: DeviceUse, num_layers: int, context: int, sequences: int) -> DeviceUse:
        weights = whole.weights - spill.weights[num_layers]
        return replace(whole, weights=weights, cache=spill.device_cache(num_layers, context, sequences))

    def _relieved(self, spill: "Spill", whole: DeviceUse, context: int, sequences: int) -> DeviceUse:
        num_layers = self._spilled(spill, whole, context, sequences)
        return self._without(spill, whole, num_layers, context, sequences)

    def _activations(self, context: int, sequences: int) -> int:
        whole = context * sequences  # the ranks of a divided sequence go through it together, not chunk by chunk
        chunk = whole if self.layout.cp > 1 else min(self.setting.prefill_chunk, whole)
        tiles = self.setting.num_tiles
        return serving_bytes(self.rates, chunk_tokens=chunk, sequences=sequences, num_tiles=tiles)

    def _training_use(self, state: "TrainingState") -> DeviceUse:
        return DeviceUse(
            weights=state.weights,
            cache=0,
            activations=state.activations,
            reserved=self.reserved,
            gradients=state.gradients,
            optimizer=state.optimizer,
            gathered=state.gathered,
            reference_weights=state.reference,
        )

    def room(self, context: int, batch: int) -> int:
        """Bytes left on the fullest device, negative where they are missing; 0 without hardware."""
        budget = self.budget
        return 0 if budget is None else min(budget.limit(use) - use.total for use in self.uses(context, batch))

    def fits(self, context: int, batch: int) -> bool:
        """True if every device has room for its part; True without hardware."""
        return self.room(context, batch) >= 0

    def has_room(self, use: DeviceUse) -> bool:
        """True if a device has room for `use`; True without hardware."""
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
    graph, tp, train = setting.graph, layout.tp, setting.train
    stage_list = stages(graph, setting.scheme, tp, layout.ep, layout.pp, setting.virtual_stages)
    terms, state_bytes = terms_besides(setting, tp), state_bytes_of(setting.engine)
    rates = activation_rates(graph, tp, layout.ep, divided=layout.cp > 1 and train is None)
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
        states=_states(graph, train, layout, stage_list) if train else (),
        module=module_on(graph, setting.scheme, layout, setting.kv_dtype_bytes) if setting.with_module else None,
    )


def _states(
    graph: LayerGraph, train: "TrainSetting", layout: Layout, stage_list: tuple[PipelineStage, ...]
) -> "tuple[StageState, ...]":
    """Training state of a device of each stage."""
    from planners.device.training_state import stage_state

    return tuple(stage_state(graph, train, layout, stage) for stage in stage_list)


def module_on(
    graph: LayerGraph, scheme: Scheme, layout: Layout, dtype_bytes: int
) -> tuple[int, tuple[CacheRow, ...]] | None:
    """Bytes of the declared module's weights on one device, cut as the model's, and its cache; None without one."""
    module = mtp_graph(graph)
    if module is None:
        return None
    from planners.counts.mtp import mtp_weight_bytes

    return mtp_weight_bytes(graph, scheme, layout), model_rows(module, Layout(tp=layout.tp), dtype_bytes)


def _spill(setting: Setting, host: "HostMemory", stage: PipelineStage, state_bytes: int) -> "Spill":
    """State that can move from the device to the host; `stage` is the whole model."""
    from planners.device.host_memory import Spill, moved_weights

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
            merged = row._replace(count=count + (known.count if known else 0))
            counts[row.bytes_per_token, row.bound] = merged
    return tuple(counts.values())


def terms_besides(setting: Setting, tp: int) -> tuple[MemoryTerm, ...]:
    """The engine's terms besides weights, cache and activations."""
    return reserved_terms(setting.graph, setting.engine, setting.hardware, tp)


def _profiled(setting: Setting, layout: Layout, rates: ActivationRates) -> "ProfiledActivations | None":
    run = setting.engine.profiling_run
    if run is None:
        return None
    from planners.device.profiled import default_rows, profiled_activations

    rows = setting.max_num_seqs or default_rows(setting.engine.name, setting.hardware)
    return profiled_activations(setting.graph, layout, run, rates, chunk=setting.prefill_chunk, rows=rows)
