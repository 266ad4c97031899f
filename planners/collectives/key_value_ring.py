"""Keys and values that the ranks along cp pass around a ring in a training step (arXiv:2310.01889).

Each rank sends its own block on to all others: once forward, and backward twice, for its gradient travels too. A pass
that recomputes attention passes them once more. Megatron and torchtitan send as much by an all-gather and a
reduce-scatter. Our own runtime trains without cp.
"""

from collections.abc import Iterable, Iterator

from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from planners.collectives.collectives import Collective
from planners.collectives.step_tokens import StepTokens
from planners.device.activations import passed_per_token

_BLOCKS = {"forward": 1, "backward": 2, "recomputed": 1}


def key_value_ring(
    graph: LayerGraph,
    layout: Layout,
    layers: Iterable[int],
    load: StepTokens,
    *,
    recomputes: bool,
) -> Iterator[Collective]:
    """The rings of `layers` on a device that has the tokens of `load` in a step, by pass."""
    if layout.cp == 1:
        return
    passed = passed_per_token(graph, layout.tp, load.piece)
    sizes = [passed[layer] for layer in layers]
    calls, block = load.micro_batches * sum(size > 0 for size in sizes), load.tokens * sum(sizes)
    for name, blocks in _BLOCKS.items():
        if name != "recomputed" or recomputes:
            payload = blocks * layout.cp * block
            yield Collective("cp", "all-gather", f"keys and values, {name}", blocks * calls, payload, layout.cp)


__all__ = ["key_value_ring"]
