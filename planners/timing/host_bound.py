"""Least time of a step whose weights lie in part in the host's memory, by llama.cpp's conventions.

A step of fewer than 32 tokens is computed where its weights lie: the host reads them from its own memory, and the
token vectors cross the link to the device and back. A longer step copies them over the link and computes on the device
(GGML_OP_OFFLOAD_MIN_BATCH; ggml/src/ggml-cuda/ggml-cuda.cu of ggml-org/llama.cpp). What the host computes takes as long
as its memory at least; how long it takes in fact depends on a processor that nobody named, and is left out. Routed
experts that no token chose are neither read nor copied.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from planners.device.activations import ACTIVATION_BYTES
from planners.device.host_memory import HostMemory, moved_weights
from planners.latency_types import KindLatency, StepLatency
from planners.timing.layer_demand import KindProfile, Step, attended, covered_experts, experts_part, kind_name
from planners.timing.step import ResourceSeconds, StepModel, gathered

COPIED_FROM = 32
"""Tokens of a step from which on weights are copied to the device."""


@dataclass(frozen=True, slots=True)
class SharedStep:
    """A model on one device whose first `num_layers` layers, or their routed experts, lie in the host's memory."""

    model: StepModel
    host: HostMemory
    num_layers: int

    def time(self, step: Step) -> StepLatency:
        """The bound of a step: device and host take turns, each with its kinds of layers."""
        kinds = [time for kind, use in self._uses(step) for time in self._of_kind(kind, use, step)]
        if self.host.part == "layers" and self.num_layers:
            vectors = step.tokens * self._vector_bytes
            kinds.append(KindLatency.of("tokens to the device", 1, 0.0, 0.0, vectors / self.host.link, None))
        return StepLatency.of(gathered(tuple(kinds)))

    def _uses(self, step: Step) -> Iterator[tuple[KindProfile, ResourceSeconds]]:
        return zip(self.model.kinds, self.model.uses(step), strict=True)

    def _of_kind(self, kind: KindProfile, use: ResourceSeconds, step: Step) -> Iterator[KindLatency]:
        away = self._layers_away(kind)
        if not away or (self.host.part == "experts" and not kind.num_experts):
            yield _row(kind.name, kind.count, use)
            return
        weights, computed = self._moved(kind, use, step, away)
        device = self._left(kind, use, step, away)
        copied = step.tokens >= COPIED_FROM
        if device is not None:
            yield _row(kind.name, kind.count - (away if self.host.part == "layers" else 0), device)
        cached = attended(kind, step)[1] * kind.cache_bytes * away if self.host.part == "layers" else 0.0
        if copied:
            crossing = weights
        else:
            crossing = 2 * step.tokens * self._vector_bytes * away if self.host.part == "experts" else 0.0
        what = "experts in host memory" if self.host.part == "experts" else "in host memory"
        yield KindLatency.of(
            f"{kind.name}, {what}",
            away,
            computed if copied else 0.0,
            (weights + cached) / self.host.bandwidth,
            crossing / self.host.link,
            None,
        )

    def _moved(self, kind: KindProfile, use: ResourceSeconds, step: Step, away: int) -> tuple[float, float]:
        """Bytes of weights that a step takes from the host's memory, and seconds of their matmuls on the device."""
        experts = self._unlike * away * covered_experts(kind, step, 1, self.model.routing) * kind.expert_bytes
        if self.host.part == "experts":
            return experts, use.matmul * away / kind.count * experts_part(kind)
        return experts + self._unlike * away * kind.weight_bytes, (use.matmul + use.attention) * away / kind.count

    def _left(self, kind: KindProfile, use: ResourceSeconds, step: Step, away: int) -> ResourceSeconds | None:
        """What stays on the device; None where nothing does."""
        weights, computed = self._moved(kind, use, step, away)
        if self.host.part == "layers":
            return None if away == kind.count else use * (1 - away / kind.count)
        read = use.weight_read - weights / self.model.machine.bandwidth
        return replace(use, weight_read=max(read, 0.0), matmul=use.matmul - computed)

    def _layers_away(self, kind: KindProfile) -> int:
        """Layers of this kind in the host's memory."""
        return sum(
            node.layer is not None and node.layer < self.num_layers
            for group in self.model.graph.groups
            if group.declaration is kind.group.declaration and kind_name(group) == kind.name
            for node in group.nodes
            if node.scope == "text"
        )

    @property
    def _unlike(self) -> float:
        """Bytes of the layers away over those of as many mean layers: formats may depend on the layer."""
        model, whole = self.model, self.host.part == "layers"
        mean = sum(
            self._layers_away(kind) * (kind.num_experts * kind.expert_bytes + (kind.weight_bytes if whole else 0))
            for kind in model.kinds
        )
        moved = moved_weights(model.graph, model.scheme, self.host.part)[self.num_layers]
        return moved / mean if mean else 1.0

    @property
    def _vector_bytes(self) -> int:
        return self.model.graph.hidden_size * ACTIVATION_BYTES


def _row(name: str, count: int, use: ResourceSeconds) -> KindLatency:
    return KindLatency.of(name, count, use.matmul + use.attention, use.weight_read + use.cached, use.links, None)
