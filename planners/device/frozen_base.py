"""Frozen weights under adapters: what a device has of a tensor, and packed tensors while they are unpacked.

Packed weights (QLoRA, arXiv:2305.14314) are unpacked to bf16 for each product, forward and backward, and dropped after
it: at any time one tensor of a device, a stack of experts whole.
"""

from math import prod
from typing import NamedTuple

from l4spec.graph.adapters import Lora, has_place, pairs_on
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


class Unpacked(NamedTuple):
    """Packed tensors of a device's blocks that are unpacked one after another.

    `largest` are the bytes of the largest one in bf16, `moved` the packed bytes of all that are read and the bf16 bytes
    that are written, once.
    """

    largest: int = 0
    moved: int = 0


def unpacked_of(graph: LayerGraph, base: Scheme, layout: Layout, layers: tuple[int, ...]) -> Unpacked:
    """The packed tensors of these blocks."""
    each = _by_layer(graph, base, layout.tp, layout.ep)
    return Unpacked(max((each[n].largest for n in layers), default=0), sum(each[n].moved for n in layers))


@kept_with(maxsize=256)
def _by_layer(graph: LayerGraph, base: Scheme, tp: int, ep: int) -> tuple[Unpacked, ...]:
    layout, layers = Layout(tp=tp, ep=ep), [Unpacked()] * graph.num_layers
    for group in graph.groups:
        if has_place(group.first):
            alike = _of_node(graph, group.first, layout, base)
            for node in group.nodes:
                own = _of_node(graph, node, layout, base) if base.depends_on_layer else alike
                assert node.layer is not None, "it is in a block"
                before = layers[node.layer]
                layers[node.layer] = Unpacked(max(before.largest, own.largest), before.moved + own.moved)
    return tuple(layers)


def _of_node(graph: LayerGraph, node: LayerNode, layout: Layout, base: Scheme) -> Unpacked:
    """The packed tensors of a layer."""
    largest = moved = 0
    for parameter in node.declaration.parameters:
        plain = UNPACKED_BYTES * measure(graph, node, parameter, layout, None)
        packed = measure(graph, node, parameter, layout, base)
        if packed < plain:
            largest, moved = max(largest, plain), moved + packed + plain
    return Unpacked(largest, moved)
