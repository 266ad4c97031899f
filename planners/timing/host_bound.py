"""Least time of a step whose weights are partly in the host's memory, by llama.cpp's conventions.

A step of fewer than 32 tokens is computed where its weights are: the host reads them from its own memory, and the token
vectors cross the link to the device and back. A longer step copies them over the link and computes on the device
(GGML_OP_OFFLOAD_MIN_BATCH; ggml/src/ggml-cuda/ggml-cuda.cu of ggml-org/llama.cpp). The host's computation takes at
least as long as its memory reads; its actual time depends on the processor, which is unknown, and is left out. Routed
experts that no token chose are neither read nor copied.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from planners.device.activations import ACTIVATION_BYTES
from planners.device.host_memory import HostMemory, moved_weights
from planners.latency_types import KindLatency, StepLatency
from planners.timing.layer_demand import KindProfile, Step, attended, covered_experts, experts_part
from planners.timing.resources import ResourceSeconds
from planners.timing.step import StepModel, gathered, kind_key

COPIED_FROM = 32
"""Tokens of a step from which on weights are copied to the device."""


@dataclass(frozen=True)
class SharedStep:
    """A model on one device whose first `num_layers` layers, or their routed experts, are in the host's memory."""

    model: StepModel
    host: HostMemory
    num_layers: int

    def time(self, step: Step) -> StepLatency:
        """The bound of a step: device and host take turns, each with its kinds of layers."""
        parts = zip(self.model.kinds, self.model.uses(step), self._away, strict=True)
        kinds = [row for kind, use, away in parts for row in self._rows(kind, use, away, step)]
        if self.host.part == "layers" and self.num_layers:
            vectors = step.tokens * self._vector_bytes
            kinds.append(KindLatency.of("tokens to the device", 1, 0.0, 0.0, vectors / self.host.link, None))
        return StepLatency.of(gathered(tuple(kinds)))

    def _rows(self, kind: KindProfile, use: ResourceSeconds, away: int, step: Step) -> Iterator[KindLatency]:
        """Times of a kind on the device, and of its part that runs on the host or is copied from it."""
        if not away or (self.host.part == "experts" and not kind.num_experts):
            yield _row(kind.name, kind.count, use)
        elif self.host.part == "experts":
            yield from self._with_experts_away(kind, use, away, step)
        else:
            yield from self._with_layers_away(kind, use, away, step)

    def _with_experts_away(
        self, kind: KindProfile, use: ResourceSeconds, away: int, step: Step
    ) -> Iterator[KindLatency]:
        """The device keeps the parts of each layer that every token needs."""
        weights = self._experts_read(kind, away, step)
        computed = use.matmul * away / kind.count * experts_part(kind)
        read = max(use.weight_read - weights / self.model.machine.bandwidth, 0.0)
        yield _row(kind.name, kind.count, replace(use, weight_read=read, matmul=use.matmul - computed))
        copied = step.tokens >= COPIED_FROM
        crossing = weights if copied else 2 * step.tokens * self._vector_bytes * away
        name = f"{kind.name}, experts in host memory"
        yield self._on_host(name, away, weights, crossing, computed if copied else 0.0)

    def _with_layers_away(
        self, kind: KindProfile, use: ResourceSeconds, away: int, step: Step
    ) -> Iterator[KindLatency]:
        """The host has whole layers and their caches."""
        if away < kind.count:
            yield _row(kind.name, kind.count - away, use * (1 - away / kind.count))
        weights = self._experts_read(kind, away, step) + self._unlike * away * kind.weight_bytes
        cached = attended(kind, step)[1] * kind.cache_bytes * away
        copied = step.tokens >= COPIED_FROM
        computed = (use.matmul + use.attention) * away / kind.count if copied else 0.0
        yield self._on_host(
            f"{kind.name}, in host memory", away, weights + cached, weights if copied else 0.0, computed
        )

    def _on_host(self, name: str, count: int, read: float, crossing: float, computed: float) -> KindLatency:
        """Layers of which bytes are read by the host and cross the link, and seconds are computed on the device."""
        return KindLatency.of(name, count, computed, read / self.host.bandwidth, crossing / self.host.link, None)

    def _experts_read(self, kind: KindProfile, away: int, step: Step) -> float:
        """Bytes of the experts that a step's tokens reach in the layers away."""
        return self._unlike * away * covered_experts(kind, step, 1, self.model.routing) * kind.expert_bytes

    @cached_property
    def _away(self) -> tuple[int, ...]:
        """Number of layers of each kind in the host's memory, whole or by their experts."""
        counts = Counter[tuple[str, int]]()
        for group in self.model.graph.groups:
            if group.first.scope == "text":
                inside = sum(node.layer is not None and node.layer < self.num_layers for node in group.nodes)
                counts[kind_key(group)] += inside
        return tuple(counts[kind_key(kind.group)] for kind in self.model.kinds)

    @cached_property
    def _unlike(self) -> float:
        """Bytes of the layers away over those of as many mean layers: formats may depend on the layer."""
        model, whole = self.model, self.host.part == "layers"
        mean = sum(
            away * (kind.num_experts * kind.expert_bytes + (kind.weight_bytes if whole else 0))
            for kind, away in zip(model.kinds, self._away, strict=True)
        )
        moved = moved_weights(model.graph, model.scheme, self.host.part)[self.num_layers]
        return moved / mean if mean else 1.0

    @property
    def _vector_bytes(self) -> int:
        return self.model.graph.hidden_size * ACTIVATION_BYTES


def _row(name: str, count: int, use: ResourceSeconds) -> KindLatency:
    return KindLatency.of(name, count, use.matmul + use.attention, use.memory, use.links, None)
