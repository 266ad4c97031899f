"""Frozen weights under adapters: what a device has of a tensor, and packed tensors while they are unpacked.

Packed weights (QLoRA, arXiv:2305.14314) are unpacked to bf16 for each product, forward and backward, and dropped after
it: at any time one tensor of a device, a stack of experts whole.
"""

from math import prod

from l4spec.graph.adapters import Lora, pairs_on
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Parameter
from l4spec.quantization.published import AS_PUBLISHED, UNQUANTIZED
from l4spec.quantization.scheme import scheme_named
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import shard_shape
from planners.counts.weights import Scheme, scheme_of, stored_size

UNPACKED_BYTES = 2
"""bf16."""
Measured = Lora | Scheme | None
"""Unit of a count: an adapter's parameters, bytes of a scheme, or the parameters of a tensor itself."""


def measure(graph: LayerGraph, node: LayerNode, parameter: Parameter, layout: Layout, of: Measured) -> int:
    """Parameters of a tensor on a device; its bytes by a scheme, or the parameters of its adapter."""
    if isinstance(of, Lora):
        pairs = (pair for pair in pairs_on(node, of) if pair.base.name == parameter.name)
        return sum(prod(shard_shape(node, tensor, layout)) for pair in pairs for tensor in (pair.down, pair.up))
    shape = shard_shape(node, parameter, layout)
    return prod(shape) if of is None else stored_size(graph, node, parameter, shape, of).total_bytes


def packed_base(quantization: str) -> Scheme | None:
    """The scheme of a frozen base by its name; None for bf16, which is the default. Raises UserError for no scheme."""
    return None if quantization in (AS_PUBLISHED, UNQUANTIZED) else scheme_of(scheme_named(quantization))


def unpacked_bytes(graph: LayerGraph, base: Scheme, layout: Layout, layers: tuple[int, ...]) -> int:
    """Bytes of the largest packed tensor of these blocks, unpacked."""
    return max((_by_layer(graph, base, layout.tp, layout.ep)[layer] for layer in layers), default=0)


@kept_with(maxsize=256)
def _by_layer(graph: LayerGraph, base: Scheme, tp: int, ep: int) -> tuple[int, ...]:
    layout, widest = Layout(tp=tp, ep=ep), [0] * graph.num_layers
    for group in graph.groups:
        if group.first.scope == "text":
            for node in group.nodes if base.depends_on_layer else (group.first,):
                size = max((_unpacked(graph, node, p, layout, base) for p in node.declaration.parameters), default=0)
                for each in (node,) if base.depends_on_layer else group.nodes:
                    if each.layer is not None:
                        widest[each.layer] = max(widest[each.layer], size)
    return tuple(widest)


def _unpacked(graph: LayerGraph, node: LayerNode, parameter: Parameter, layout: Layout, base: Scheme) -> int:
    """Bytes of a tensor unpacked; 0 where it is not packed."""
    plain = UNPACKED_BYTES * measure(graph, node, parameter, layout, None)
    return plain if plain > measure(graph, node, parameter, layout, base) else 0
