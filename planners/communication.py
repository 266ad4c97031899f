"""How many bytes one device sends per token of its batch, axis by axis, by ring collectives of bf16 activations.

Megatron's tensor parallelism (arXiv:1909.08053): one all-reduce behind attention and one behind each feed-forward
layer; a ring all-reduce of n bytes over p ranks sends 2 n (p - 1) / p, an all-gather or all-to-all n (p - 1) / p.
"""

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.moe.spec import MoESpec
from l4spec.sharding.layout import Layout
from planners.activations import ACTIVATION_BYTES
from planners.plan_types import Communication


def communication(graph: LayerGraph, layout: Layout) -> tuple[Communication, ...]:
    """One row per mesh axis that communicates in a forward pass."""
    width = graph.model.text.stack.width.hidden_size * ACTIVATION_BYTES
    rows = []
    if layout.tp > 1:
        reductions = 1 + sum(node.scope == "text" and node.role in ("attention", "ffn") for node in graph.nodes)
        sent = reductions * 2 * width * (layout.tp - 1) // layout.tp
        text = f"{reductions} x 2 x {width:,} B x {layout.tp - 1}/{layout.tp} (each layer's output and the embedding)"
        rows.append(Communication(axis="tp", collective="all-reduce", bytes_per_token=sent, arithmetic=text))
    if layout.ep > 1:
        routed = sum(node.spec.num_experts_per_token for node in graph.nodes if isinstance(node.spec, MoESpec))
        sent = routed * 2 * width * (layout.ep - 1) // layout.ep
        text = f"{routed} routed copies x 2 (there and back) x {width:,} B x {layout.ep - 1}/{layout.ep}"
        rows.append(Communication(axis="ep", collective="all-to-all", bytes_per_token=sent, arithmetic=text))
    if layout.pp > 1:
        text = f"{width:,} B to the next stage"
        rows.append(Communication(axis="pp", collective="send", bytes_per_token=width, arithmetic=text))
    return tuple(rows)
