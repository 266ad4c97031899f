"""Time of a training step: passes, exposed communication, uneven stages and the pipeline's bubble, optimizer.

Tensor and balanced expert parallelism spread work evenly; data-parallel ranks, ranks along cp and pipeline stages wait
for the one that has the most, where the last stage has the head, whose matmul is in bf16 in every recipe. After the
passes come the optimizer and what computation does not hide of gradients and weights that data-parallel ranks send.

A matmul takes its FLOPs at a share of the peak and, beside them, a share of the time of its traffic
(`planners.timing.matmul_traffic`): narrow and much divided ones are slower for a FLOP. A trainer's factor is on matmuls
and element-wise work; attention has a share of the peak by trainer, since its kernels differ.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.sharding.layout import Layout
from l4spec.sharding.sequence import piece_of
from l4spec.units import ceil_div
from planners.collectives.collectives import Collective, groups_of_stage
from planners.collectives.key_value_ring import key_value_ring
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import exchanges, reductions, shares
from planners.counts.weights import Scheme
from planners.device.activations import ACTIVATION_BYTES
from planners.latency_types import KindLatency, StepLatency
from planners.timing.efficiency import TrainingEfficiency
from planners.timing.layer_demand import KindProfile, index_flops, pairs_of, profile
from planners.timing.machine import Machine, link_seconds
from planners.timing.matmul_traffic import matmul_traffic
from planners.timing.step import ATTENTION_DTYPE, kind_key

FORWARD_AND_BACKWARD = 3.0
"""A backward pass costs two forward passes: gradients of inputs and of weights."""
FLASH_RECOMPUTE = 0.5
"""Flash attention's backward pass computes the scores once more: half of a forward pass (arXiv:2205.14135)."""
EVERY_SECOND = 0.5
"""Share of matmuls that torchtitan's selective checkpointing runs again: it keeps the results of every second one and
of attention (torchtitan/models/llama/parallelize_llama.py, December 2024)."""


@dataclass(frozen=True, slots=True)
class TrainLoad:
    """One optimizer step over `sequences` of `length` tokens on `num_devices` devices.

    `ep` experts' groups are inside the data-parallel ranks and span `ep_span` devices. `virtual_stages` interleave a
    pipeline. `checkpointing` says what the backward pass computes again. `frozen_weights` (LoRA) have no gradient;
    where they are packed, a pass over a device's weights moves `unpacked_bytes` (`planners.device.frozen_base`), once a
    micro-batch. `trainer` selects the trainer's factors; torchtitan's tensor parallelism hides nothing unless it is
    `async_tp`. `updated_bytes` are those that the optimizer reads and writes on one device, `shared_seconds` what its
    links need for gradients and weights, `once_seconds` what they need to send each of them once.
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
    checkpointing: Checkpointing = "none"
    frozen_weights: bool = False
    unpacked_bytes: int = 0
    trainer: str = "megatron"
    matmul_format: str | None = None
    sequence_parallel: bool = False
    async_tp: bool = False
    updated_bytes: int = 0
    shared_seconds: float = 0.0
    once_seconds: float = 0.0

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
    def is_full(self) -> bool:
        """True if whole blocks are computed again."""
        return self.checkpointing == "full"

    @property
    def again(self) -> float:
        """Forward passes of matmuls that are computed again."""
        by_half = self.checkpointing == "selective" and self.trainer == "torchtitan"
        return 1.0 if self.is_full else EVERY_SECOND if by_half else 0.0

    @property
    def core_again(self) -> bool:
        """True if attention's core alone is computed again."""
        return self.checkpointing == "selective" and self.trainer != "torchtitan"

    @property
    def passes(self) -> float:
        """Matmul work in forward passes."""
        return FORWARD_AND_BACKWARD + self.again - (1.0 if self.frozen_weights else 0.0)

    @property
    def attention_passes(self) -> float:
        """Work of attention's core in forward passes."""
        return FORWARD_AND_BACKWARD + FLASH_RECOMPUTE + (1.0 if self.is_full or self.core_again else 0.0)

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
        micro_batches = max(1.0, self.sequences_of_rank / self.micro_batch)  # the last may be smaller
        return (self.pp - slowest) / (self.virtual_stages * micro_batches)


@dataclass(frozen=True, slots=True)
class TrainModel:
    """A model trained with `scheme`'s number formats on a machine."""

    graph: LayerGraph
    scheme: Scheme
    machine: Machine
    efficiency: TrainingEfficiency | None

    def time(self, load: TrainLoad) -> StepLatency:
        """Seconds of a step on one device, by kind of layer; all else that takes time is in `constant`."""
        kinds = profile(self.graph, self.scheme, Layout(), ACTIVATION_BYTES, training=True)
        share, micro_batches = load.share, load.micro_batches / load.pp
        times = [self._kind(kind, load, share, micro_batches) for kind in kinds]
        slowest = 1.0 if self.efficiency is None else self._slowest_stage(load, kinds, times)
        if load.unpacked_bytes:
            times.append(self._unpacking(load))
        if self.efficiency is None:
            return StepLatency.of(tuple(times), 0.0)
        busy = sum(time.estimate_seconds or 0.0 for time in times)
        return StepLatency.of(tuple(times), self._besides(load, busy, slowest))

    def _unpacking(self, load: TrainLoad) -> KindLatency:
        """Packed weights become bf16 in every pass over them: they are read and written as element-wise work is."""
        passes = load.micro_batches * (2.0 + load.again)
        seconds = passes * load.unpacked_bytes / self.machine.bandwidth
        estimate = None if self.efficiency is None else seconds * self.efficiency.moved
        return KindLatency.of("unpacking of weights", self.graph.num_layers, 0.0, seconds, 0.0, estimate)

    def _slowest_stage(self, load: TrainLoad, kinds: Sequence[KindProfile], times: Sequence[KindLatency]) -> float:
        """Time of the slowest stage over the mean of all: embedding and head are on the ends."""
        if load.pp == 1:
            return 1.0
        of_kinds = zip(kinds, times, strict=True)
        seconds = {kind_key(kind.group): (time.estimate_seconds or 0.0) / kind.count for kind, time in of_kinds}
        every = sum(time.estimate_seconds or 0.0 for time in times)
        stages = kinds_of_stages(self.graph, load.pp, load.virtual_stages)
        slowest = max(sum(count * seconds[key] for key, count in stage) for stage in stages)
        return slowest * load.pp / every if every else 1.0

    def _kind(self, kind: KindProfile, load: TrainLoad, share: float, micro_batches: float) -> KindLatency:
        """Layers of one kind, shared among the stages: `share` of sequences and `micro_batches` of one device."""
        factors, estimate = self.efficiency, None
        tokens = share * kind.count * load.length
        compute = self._matmuls(kind, load, tokens)
        pairs = share * kind.count * pairs_of(kind, load.length, 0) if kind.bound else 0.0
        pairs *= _most_of_mean(kind, load.length, load.cp) if pairs and load.cp > 1 else 1.0
        scores = pairs * kind.pair_flops * load.attention_passes / self._peak(ATTENTION_DTYPE)
        elementwise = tokens * (load.passes + (load.again > 0) - load.again) * kind.moved_bytes_per_token
        memory = elementwise / self.machine.bandwidth
        if factors is not None:
            factor = factors.moe_moved if kind.num_experts else factors.moved
            shares = [(seconds, self._share(dtype, load)) for dtype, seconds in compute.items()]
            if all(share is not None for _, share in shares):
                matmuls = sum(seconds / share for seconds, share in shares if share)
                matmuls += factors.operands * self._traffic(kind, load, tokens, micro_batches) / self.machine.bandwidth
                estimate = (matmuls + memory * factor) * factors.trainers.get(load.trainer, 1.0)
                estimate += scores / factors.attention_of.get(load.trainer, factors.attention)
        return KindLatency.of(kind.name, kind.count, sum(compute.values()) + scores, memory, 0.0, estimate)

    def _matmuls(self, kind: KindProfile, load: TrainLoad, tokens: float) -> dict[str, float]:
        """Seconds of the matmuls at the peak, by number format."""
        flops = [(dtype, tokens * load.passes * each) for dtype, each in kind.flops_per_row]
        if load.core_again:
            flops += [(dtype, tokens * each) for dtype, each in kind.core_flops_per_row]
        if kind.has_index:  # it has no gradient
            scores = tokens / load.length * index_flops(kind, load.length, 0)
            flops.append((ATTENTION_DTYPE, scores * (1 + load.is_full)))
        seconds: dict[str, float] = {}
        for dtype, each in flops:
            seconds[dtype] = seconds.get(dtype, 0.0) + each / self._peak(dtype)
        return seconds

    def _traffic(self, kind: KindProfile, load: TrainLoad, tokens: float, micro_batches: float) -> float:
        """Bytes that matmuls read and write on one device."""
        expert_tp = min(load.tp, load.ep_span // load.ep) if load.ep > 1 else load.tp
        traffic = matmul_traffic(self.graph, kind.group.first.id, load.tp, load.ep, max(expert_tp, 1))
        of_weights = kind.count * micro_batches
        return traffic.bytes(tokens, of_weights, again=load.again, frozen=load.frozen_weights)

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
        """Exposed communication, uneven stages, the bubble and what follows the passes, in seconds above `busy`."""
        factors = self.efficiency
        assert factors is not None
        sent = communication_seconds(self.graph, self.machine, load)
        hides_none = load.trainer == "torchtitan" and not load.async_tp
        exposed = busy + (1.0 if hides_none else factors.tp) * sent["tp"]
        exposed += factors.ep * sent["ep"] + factors.cp * sent["cp"]
        return exposed * (slowest + load.bubble_beside(slowest)) - busy + self.after_passes(load)

    def after_passes(self, load: TrainLoad) -> float:
        """Seconds of the optimizer, and of gradients and weights that nothing hides; 0 without factors.

        ZeRO 2 and 3 send them in every micro-batch, of which the others hide those before the last.
        """
        if self.efficiency is None:
            return 0.0
        updated = load.updated_bytes / self.machine.bandwidth
        return self.efficiency.optimizer * updated + self.efficiency.dp * load.once_seconds


@kept_with(maxsize=1024)
def kinds_of_stages(
    graph: LayerGraph, pp: int, virtual_stages: int
) -> tuple[tuple[tuple[tuple[str, int], int], ...], ...]:
    """Number of layers of each kind (`kind_key`) on the stages of a pipeline, those that differ."""
    stages = dict[tuple[tuple[tuple[str, int], int], ...], None]()
    for stage in range(pp):
        counts = Counter[tuple[str, int]]()
        for group in groups_of_stage(graph, Layout(pp=pp), stage, virtual_stages):
            counts[kind_key(group)] += group.count
        stages[tuple(counts.items())] = None
    return tuple(stages)


def communication_seconds(graph: LayerGraph, machine: Machine, load: TrainLoad) -> dict[str, float]:
    """Seconds that one device's links are busy in a step, per axis, were nothing hidden behind computation.

    tp and ep: the collectives of all passes by `planners.collectives.training_traffic`, where each rank of tp sends its
    share of the routed tokens (sequence parallelism, as trainers do; our runtime's ranks send all of them). cp:
    `planners.collectives.key_value_ring`.
    """
    sent = _Sent(
        load.tp,
        load.ep,
        load.ep_span,
        load.cp,
        piece_of(load.length, load.cp),
        load.sequence_parallel,
        load.is_full,
        load.is_full or load.core_again,
    )
    tokens = load.share * load.length
    return {axis: tokens * seconds for axis, seconds in _seconds_per_token(graph, machine, sent).items()}


class _Sent(NamedTuple):
    """Settings that the traffic of a token depends on: degrees, pieces of a sequence, and passes."""

    tp: int
    ep: int
    ep_span: int
    cp: int
    piece: int
    sequence_parallel: bool
    recomputed: bool
    attention_recomputed: bool

    def seconds(self, machine: Machine, layout: Layout, listed: Iterable[Collective], *, again: bool) -> float:
        """Seconds per token of the passes, each as often as the step runs it."""
        runs = {"forward": 1.0, "backward": 1.0, "recomputed": float(again)}
        times = ((runs[each.tensor.rpartition(" ")[2]], link_seconds(machine, layout, each)) for each in listed)
        return sum(often * seconds for often, seconds in times) / _SOME.tokens


@kept_with(maxsize=1024)
def _seconds_per_token(graph: LayerGraph, machine: Machine, sent: _Sent) -> dict[str, float]:
    seconds, again = {"tp": 0.0, "ep": 0.0, "cp": 0.0}, sent.recomputed
    if sent.tp > 1:
        layout = Layout(tp=sent.tp)
        listed = (shares if sent.sequence_parallel else reductions)(graph, layout, _SOME, 0, recomputes=again)
        seconds["tp"] = sent.tp * sent.seconds(machine, layout, listed, again=again)
    if sent.ep > 1:
        layout = Layout(tp=max(sent.ep_span // sent.ep, 1), ep=sent.ep)
        listed = exchanges(graph, layout, _SOME, 0, recomputes=True)
        seconds["ep"] = sent.seconds(machine, layout, listed, again=again)
    if sent.cp > 1:
        again, some = sent.attention_recomputed, replace(_SOME, piece=sent.piece)
        ring = key_value_ring(graph, Layout(cp=sent.cp), range(graph.num_layers), some, recomputes=again)
        seconds["cp"] = sent.seconds(machine, Layout(tp=sent.tp, cp=sent.cp), ring, again=again)
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
