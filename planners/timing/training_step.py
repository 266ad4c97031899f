"""Time of a training step: forward, backward and recomputed passes, exposed communication, pipeline bubble.

Tensor and balanced expert parallelism spread work evenly; data-parallel ranks, pipeline stages and ranks along cp wait
for the one that has the most. Beside that layouts differ in what they send.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.sharding.sequence import piece_of
from l4spec.units import ceil_div
from planners.collectives.collectives import Collective
from planners.collectives.key_value_ring import key_value_ring
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import exchanges, reductions, shares
from planners.counts.weights import Scheme
from planners.device.activations import ACTIVATION_BYTES
from planners.latency_types import KindLatency, StepLatency
from planners.timing.efficiency import TrainingEfficiency
from planners.timing.layer_demand import KindProfile, index_flops, pairs_of, profile
from planners.timing.machine import Machine, link_seconds
from planners.timing.step import ATTENTION_DTYPE, kind_key

FORWARD_AND_BACKWARD = 3.0
"""A backward pass costs two forward passes: gradients of inputs and of weights."""
FLASH_RECOMPUTE = 0.5
"""Flash attention's backward pass computes the scores once more: half of a forward pass (arXiv:2205.14135)."""


@dataclass(frozen=True, slots=True)
class TrainLoad:
    """One optimizer step over `sequences` of `length` tokens on `num_devices` devices.

    `ep` experts' groups are inside the data-parallel ranks and span `ep_span` devices. `virtual_stages` interleave a
    pipeline, and `stages` are the layers of each of its stages that differ; without any, stages are equal. `recompute`
    forward passes are done again for the backward pass; `attention_recompute` only attention's core. `frozen_weights`
    (LoRA) saves the weights' gradients; where they are packed, a pass over a device's weights moves `unpacked_bytes`
    (`planners.device.frozen_base`), once a micro-batch. `trainer` selects the trainer's factor.
    """

    sequences: int
    length: int
    num_devices: int
    tp: int = 1
    pp: int = 1
    ep: int = 1
    cp: int = 1
    ep_span: int = 1
    micro_batch: int = 1
    virtual_stages: int = 1
    recompute: float = 0.0
    attention_recompute: float = 0.0
    frozen_weights: bool = False
    unpacked_bytes: int = 0
    trainer: str = "megatron"
    matmul_format: str | None = None
    sequence_parallel: bool = False
    stages: tuple[tuple[int, ...], ...] = ()

    @property
    def ranks(self) -> int:
        """Data-parallel ranks."""
        return self.num_devices // (self.tp * self.pp * self.cp)

    @property
    def sequences_of_rank(self) -> int:
        """Whole sequences of the busiest data-parallel rank, for which the others wait."""
        return max(1, ceil_div(self.sequences, self.ranks))

    @property
    def share(self) -> float:
        """Sequences that one device of the busiest data-parallel rank works through."""
        return self.sequences_of_rank / (self.tp * self.pp * self.cp)

    @property
    def passes(self) -> float:
        """Matmul work in forward passes."""
        return FORWARD_AND_BACKWARD + self.recompute - (1.0 if self.frozen_weights else 0.0)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of the busiest data-parallel rank."""
        return ceil_div(self.sequences_of_rank, self.micro_batch)

    @property
    def bubble(self) -> float:
        """Idle share of a pipelined step: (pp - 1) / (virtual stages x micro-batches) (arXiv:2104.04473)."""
        return self.bubble_beside(1.0)

    def bubble_beside(self, slowest: float) -> float:
        """The same where a stage takes `slowest` of a stage's mean: the first micro-batch waits for all others once."""
        micro_batches = max(1.0, self.sequences_of_rank / self.micro_batch)
        return (self.pp - slowest) / (self.virtual_stages * micro_batches)


@dataclass(frozen=True, slots=True)
class TrainModel:
    """A model trained with `scheme`'s number formats on a machine."""

    graph: LayerGraph
    scheme: Scheme
    machine: Machine
    efficiency: TrainingEfficiency | None

    def time(self, load: TrainLoad) -> StepLatency:
        """Seconds of a step on one device, by kind of layer; communication and bubble are in `constant`."""
        kinds = profile(self.graph, self.scheme, Layout(), ACTIVATION_BYTES, training=True)
        share = load.share
        times = []
        for kind in kinds:
            tokens = share * kind.count * load.length
            rows = tokens * load.passes
            matmuls = [(dtype, rows * flops) for dtype, flops in kind.flops_per_row]
            if load.attention_recompute:
                again = tokens * load.attention_recompute
                matmuls += [(dtype, again * flops) for dtype, flops in kind.core_flops_per_row]
            if kind.has_index:  # it has no gradient
                scores = share * kind.count * index_flops(kind, load.length, 0)
                matmuls.append((ATTENTION_DTYPE, scores * (1 + load.recompute)))
            pairs = share * kind.count * pairs_of(kind, load.length, 0) if kind.bound else 0.0
            pairs *= _most_of_mean(kind, load.length, load.cp) if pairs and load.cp > 1 else 1.0
            attention = pairs * kind.pair_flops * self._attention_passes(load)
            moved = rows * kind.moved_bytes_per_token
            times.append(self._kind(kind, matmuls, attention, moved, load))
        slowest = 1.0 if self.efficiency is None else self._slowest_stage(load, kinds, times)
        if load.unpacked_bytes:
            times.append(self._unpacking(load))
        if self.efficiency is None:
            return StepLatency.of(tuple(times), 0.0)
        busy = sum(time.estimate_seconds or 0.0 for time in times)
        return StepLatency.of(tuple(times), self._besides(load, busy, slowest))

    def _unpacking(self, load: TrainLoad) -> KindLatency:
        """Packed weights become bf16 in every pass over them: they are read and written as element-wise work is."""
        passes = load.micro_batches * (2.0 + load.recompute)
        seconds = passes * load.unpacked_bytes / self.machine.bandwidth
        estimate = None if self.efficiency is None else seconds * self.efficiency.moved
        return KindLatency.of("unpacking of weights", self.graph.num_layers, 0.0, seconds, 0.0, estimate)

    def _slowest_stage(self, load: TrainLoad, kinds: Sequence[KindProfile], times: Sequence[KindLatency]) -> float:
        """Time of the blocks of the slowest stage over that of a stage's equal part of all blocks; 1 where none is.

        Embedding and head are left out: fitted runs have them on the end stages, so that the factors include them.
        """
        if load.pp == 1 or not load.stages:
            return 1.0
        of_kinds = zip(kinds, times, strict=True)
        seconds = {kind_key(kind.group): (time.estimate_seconds or 0.0) / kind.count for kind, time in of_kinds}

        def spent(layers: tuple[int, ...]) -> float:
            return sum(count * seconds[key] for key, count in _kinds_of(self.graph, layers))

        every = spent(tuple(range(self.graph.num_layers)))
        return max(map(spent, load.stages)) * load.pp / every if every else 1.0

    def _attention_passes(self, load: TrainLoad) -> float:
        return FORWARD_AND_BACKWARD + FLASH_RECOMPUTE + load.recompute + load.attention_recompute

    def _kind(
        self, kind: KindProfile, matmuls: list[tuple[str, float]], attention: float, moved: float, load: TrainLoad
    ) -> KindLatency:
        compute: dict[str, float] = {}
        for dtype, flops in matmuls:
            compute[dtype] = compute.get(dtype, 0.0) + flops / self._peak(dtype)
        scores = attention / self._peak(ATTENTION_DTYPE)
        memory = moved / self.machine.bandwidth
        factors, estimate = self.efficiency, None
        if factors is not None:
            factor = factors.moe_moved if kind.num_experts else factors.moved
            shares = [(seconds, self._share(dtype, load)) for dtype, seconds in compute.items()]
            if all(share is not None for _, share in shares):
                estimate = sum(seconds / share for seconds, share in shares if share)
                estimate += scores / factors.attention + memory * factor
        return KindLatency.of(kind.name, kind.count, sum(compute.values()) + scores, memory, 0.0, estimate)

    def _share(self, dtype: str, load: TrainLoad) -> float | None:
        """The share of the peak that matmuls of this format reach; a named format replaces that of packed weights."""
        assert self.efficiency is not None
        named = load.matmul_format if dtype in ("fp8", "fp4") and load.matmul_format else dtype
        return self.efficiency.matmul.get(named)

    def _peak(self, dtype: str) -> float:
        peak = self.machine.peak(dtype)
        assert peak is not None, "ask for missing peaks first"
        return peak

    def _besides(self, load: TrainLoad, busy: float, slowest: float) -> float:
        """Exposed communication, uneven stages, the bubble and the trainer's factor, in seconds above `busy`."""
        factors = self.efficiency
        assert factors is not None
        sent = communication_seconds(self.graph, self.machine, load)
        exposed = busy + factors.tp * sent["tp"] + factors.ep * sent["ep"] + factors.cp * sent["cp"]
        return exposed * (slowest + load.bubble_beside(slowest)) * factors.trainers.get(load.trainer, 1.0) - busy


@kept_with(maxsize=1024)
def _kinds_of(graph: LayerGraph, layers: tuple[int, ...]) -> tuple[tuple[tuple[str, int], int], ...]:
    """Number of layers of each kind (`kind_key`) in these blocks of the language model."""
    inside, counts = frozenset(layers), Counter[tuple[str, int]]()
    for group in graph.groups:
        if group.first.scope == "text":
            counts[kind_key(group)] += sum(node.layer in inside for node in group.nodes)
    return tuple(counts.items())


def communication_seconds(graph: LayerGraph, machine: Machine, load: TrainLoad) -> dict[str, float]:
    """Seconds that one device's links are busy in a step, per axis, were nothing hidden behind computation.

    tp and ep: the collectives of all passes by `planners.collectives.training_traffic`, where each rank of tp sends its
    share of the routed tokens (sequence parallelism, as trainers do; our runtime's ranks send all of them). cp:
    `planners.collectives.key_value_ring`.
    """
    tokens = load.share * load.length
    seconds = {"tp": 0.0, "ep": 0.0, "cp": 0.0}
    if load.tp > 1:
        layout = Layout(tp=load.tp)
        of_tokens = shares if load.sequence_parallel else reductions
        listed = of_tokens(graph, layout, _SOME, 0, recomputes=load.recompute > 0)
        seconds["tp"] = tokens * load.tp * _weighted(machine, layout, listed, load)
    if load.ep > 1:
        layout = Layout(tp=max(load.ep_span // load.ep, 1), ep=load.ep)
        listed = exchanges(graph, layout, _SOME, 0, recomputes=True)
        seconds["ep"] = tokens * _weighted(machine, layout, listed, load)
    if load.cp > 1:
        again, piece = load.recompute or load.attention_recompute, piece_of(load.length, load.cp)
        some = replace(_SOME, piece=piece)
        ring = key_value_ring(graph, Layout(cp=load.cp), range(graph.num_layers), some, recomputes=again > 0)
        seconds["cp"] = tokens * _weighted(
            machine, Layout(tp=load.tp, cp=load.cp), ring, replace(load, recompute=again)
        )
    return seconds


def _most_of_mean(kind: KindProfile, length: int, cp: int) -> float:
    """Attended pairs of the busiest rank along cp over the mean; 1 for a causal mask without a window or chunks.

    Of 2 x cp pieces the rank r has the r-th and the r-th from the end.
    """
    assert kind.bound is not None, "what attends has a law"
    if kind.bound.kind == "full":
        return 1.0
    piece = piece_of(length, cp)
    before = [pairs_of(kind, number * piece, 0) if number else 0.0 for number in range(2 * cp + 1)]
    pieces = [after - start for start, after in pairwise(before)]
    return max(pieces[rank] + pieces[-1 - rank] for rank in range(cp)) * cp / before[-1]


_SOME = StepTokens(tokens=1024, micro_batches=1)
"""Payloads are proportional to tokens; these are enough for fractional experts per token."""


def _weighted(machine: Machine, layout: Layout, listed: Iterable[Collective], load: TrainLoad) -> float:
    """Seconds per token of the passes, each as often as the step runs it."""
    runs = {"forward": 1.0, "backward": 1.0, "recomputed": load.recompute}
    times = ((runs[each.tensor.rpartition(" ")[2]], link_seconds(machine, layout, each)) for each in listed)
    return sum(often * seconds for often, seconds in times) / _SOME.tokens
