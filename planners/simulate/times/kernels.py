"""Step times from tables of measured kernels.

A step is every layer's kernels one after the other, the head and the sampler, and a constant:

    layers x (2 norms + projections + attention + feed-forward) + embedding + last norm + head + sampler + overhead

Kernels were timed one by one; CUDA graphs launch them back to back, so nothing is added between them. A batch of
decodes is padded to the next captured size, as engines do.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planners.simulate.times.interface import Chunk, StepBatch
from planners.simulate.times.kernel_tables import KernelTables

_ONCE = ("embedding", "final_layernorm")
_TWICE = ("layernorm",)
GRAPH_SIZES: tuple[int, ...] = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16))
"""Batch sizes that vLLM captures by default (vllm/config/vllm.py, cudagraph_capture_sizes up to 512)."""


@dataclass(frozen=True, slots=True)
class RoutedLayers:
    """Parameters of a mixture of experts besides its table.

    `coverage(tokens)` is the mean number of distinct experts of all ranks that `tokens` tokens reach; each of `ep`
    ranks reads its share. `exchange_seconds(tokens)` is the time of a layer to send `tokens` tokens of all ranks to
    their experts and back.
    """

    coverage: Callable[[int], float]
    ep: int = 1
    exchange_seconds: Callable[[int], float] = lambda tokens: 0.0


class KernelStepTimes:
    """Seconds of steps of a model with `layers` equal layers, from its kernel tables."""

    def __init__(
        self, tables: KernelTables, layers: int, *, overhead: float = 0.0, routed: RoutedLayers | None = None
    ) -> None:
        self.tables = tables
        self.layers = layers
        self.overhead = overhead
        self.routed = routed
        self._dense: dict[int, float] = {}
        self._moe: dict[int, float] = {}

    @property
    def basis(self) -> tuple[str, ...]:
        """The files, and the constant."""
        lines = [f"kernel tables {', '.join(self.tables.files)}, {self.layers} layers"]
        lines.append(f"{self.overhead * 1e3:.3f} ms a step on top of the kernels")
        return tuple(lines)

    @property
    def request_seconds(self) -> float:
        """None: tables of kernels know nothing of a front end."""
        return 0.0

    def seconds(self, batches: Sequence[StepBatch]) -> float:
        """The slowest rank's kernels, and the experts that all ranks share."""
        slowest = max(self._rank(batch) for batch in batches)
        return slowest + self._experts(batches) + self.overhead

    def _rank(self, batch: StepBatch) -> float:
        """Seconds of everything but routed experts."""
        tokens = padded(batch.tokens)
        micro = self._of_tokens(tokens) + self.layers * self._attention(batch)
        rows = max(1, batch.rows_of_logits)
        micro += sum(curve.at(rows) for curve in self.tables.per_sequence.values())
        return micro * 1e-6

    def _of_tokens(self, tokens: int) -> float:
        """Microseconds of the operations that depend on the number of new tokens alone."""
        known = self._dense.get(tokens)
        if known is None:
            known = 0.0
            for name, curve in self.tables.dense.items():
                times = 1 if name in _ONCE else self.layers * (2 if name in _TWICE else 1)
                known += times * curve.at(tokens)
            self._dense[tokens] = known
        return known

    def _attention(self, batch: StepBatch) -> float:
        """Microseconds of one layer's attention.

        The table knows one chunk beside decodes. Several chunks take the time of the most expensive one, plus for each
        other one its time above the smallest measured chunk: chunks share the launch, not the work.
        """
        tables = self.tables
        mean = batch.context / batch.decode if batch.decode else 0.0
        if not batch.chunks:
            return tables.decode.at((batch.decode, mean)) if batch.decode else 0.0
        alone = [(tables.prefill.at((chunk.new, chunk.cached)), chunk) for chunk in batch.chunks]
        most, first = max(alone, key=lambda pair: pair[0])
        floor = tables.prefill.at((0, 0))
        others = sum(max(0.0, time - floor) for time, _ in alone) - max(0.0, most - floor)
        if not batch.decode:
            return most + others
        return self._beside(first, batch.decode, mean) + others

    def _beside(self, chunk: Chunk, decode: int, mean: float) -> float:
        return self.tables.mixed.at((chunk.new, chunk.cached, decode, mean))

    def _experts(self, batches: Sequence[StepBatch]) -> float:
        """Seconds of the routed layers: all ranks' tokens choose among all ranks' experts."""
        if self.tables.moe is None or self.routed is None:
            return 0.0
        tokens = sum(padded(batch.tokens) if batch.tokens else 0 for batch in batches)
        known = self._moe.get(tokens)
        if known is None:
            experts = self.routed.coverage(tokens) / self.routed.ep
            seconds = self.tables.moe.at((experts, tokens)) * 1e-6 + self.routed.exchange_seconds(tokens)
            known = self._moe[tokens] = self.layers * seconds
        return known


def padded(tokens: int) -> int:
    """The captured batch size that a step of `tokens` tokens runs at; beyond the largest the number itself."""
    if tokens > GRAPH_SIZES[-1] or tokens <= 0:
        return tokens
    return GRAPH_SIZES[bisect_left(GRAPH_SIZES, tokens)]


__all__ = ["GRAPH_SIZES", "KernelStepTimes", "RoutedLayers", "padded"]
