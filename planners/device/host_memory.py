"""Weights in the host's memory because a single device has no room for them, by llama.cpp's conventions.

Either the routed experts of the first N layers (`--n-cpu-moe N`), or the first N layers whole with their caches (all
but the last layers, which `-ngl` counts). N is the least with which the device has room. Other memory of the host
(operating system, a copy of the file while loading) is unknown and not counted.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from planners.catalog.engines import Engine
from planners.counts.kv_cache import CacheRow, cache_bytes
from planners.counts.weights import Scheme, stored_size
from planners.device.stages import nodes_by_layer
from planners.plan_types import HostMemoryUse

OnHost = Literal["experts", "layers"]
ASSUMED_BANDWIDTH = 89.6e9
"""Bytes per second of two channels of DDR5-5600 (JEDEC JESD79-5: 2 channels x 8 bytes x 5.6e9 transfers per second)."""


class HostMemory(NamedTuple):
    """Host memory for weights: bytes, its bandwidth, and that of the link to the device, both in bytes/s."""

    part: OnHost
    num_bytes: int
    bandwidth: float
    bandwidth_given: bool
    link: float


@dataclass(frozen=True, slots=True, eq=False)
class Spill:
    """Offloaded state by number of layers, from 0 on: bytes of weights, and caches that leave the device."""

    host: HostMemory
    engine: Engine
    weights: tuple[int, ...]
    on_device: tuple[tuple[CacheRow, ...], ...]
    on_host: tuple[tuple[CacheRow, ...], ...]

    def host_bytes(self, num_layers: int, context: int, sequences: int) -> int:
        """Bytes in the host's memory."""
        return self.weights[num_layers] + self.host_cache(num_layers, context, sequences)

    def host_cache(self, num_layers: int, context: int, sequences: int) -> int:
        """Bytes of caches in the host's memory."""
        return cache_bytes(self.on_host[num_layers], self.engine, context, sequences)

    def device_cache(self, num_layers: int, context: int, sequences: int) -> int:
        """Bytes of caches that stay on the device."""
        return cache_bytes(self.on_device[num_layers], self.engine, context, sequences)

    def most(self, context: int, sequences: int) -> int:
        """The most layers that the host's memory has room for."""
        numbers = range(len(self.weights))
        size = self.host.num_bytes
        return bisect_right(numbers, size, key=lambda n: self.host_bytes(n, context, sequences)) - 1

    def use(self, num_layers: int, context: int, sequences: int) -> HostMemoryUse:
        """As a plan shows it."""
        return HostMemoryUse(
            part=self.host.part,
            num_layers=num_layers,
            of_layers=len(self.weights) - 1,
            weights_bytes=self.weights[num_layers],
            kv_cache_bytes=self.host_cache(num_layers, context, sequences),
            capacity_bytes=self.host.num_bytes,
            bandwidth=self.host.bandwidth,
            bandwidth_origin="given" if self.host.bandwidth_given else "assumed",
            link_bandwidth=self.host.link,
        )


@kept_with(maxsize=64)
def moved_weights(graph: LayerGraph, scheme: Scheme, part: OnHost) -> tuple[int, ...]:
    """Bytes of the first 0, 1, 2, ... layers of the language model, or of their routed experts alone."""
    sizes = dict[int, int]()

    def size(layer: int) -> int:
        total = 0
        for node in nodes_by_layer(graph)[layer]:
            key = id(node) if scheme.depends_on_layer else id(node.declaration)
            if key not in sizes:
                sizes[key] = sum(
                    stored_size(graph, node, parameter, parameter.shape, scheme).total_bytes
                    for parameter in node.declaration.parameters
                    if not parameter.tied_to and (part == "layers" or parameter.is_per_expert)
                )
            total += sizes[key]
        return total

    return (0, *accumulate(size(layer) for layer in range(graph.num_layers)))
