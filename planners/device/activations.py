"""How much memory activations take on one device: while serving, and while training.

Serving: peak of one prefill chunk = max(2 x residual stream + live buffers of the largest layer, logits).
Attention keeps no score matrix (flash attention). Routed tokens are assumed spread evenly
over expert-parallel ranks. Where a sequence's tokens are divided among ranks, a layer that sees
those of other ranks holds two more blocks of what travels, and two results, one of them in fp32. Training: what
autograd keeps for the backward pass.
"""

from dataclasses import dataclass

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.layers.declaration import Buffer, Work
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import layout_for, shard_size
from l4spec.sharding.sequence import passes_on
from planners.counts.cost_sheet import PassTokens, work_of
from planners.counts.kv_cache import bytes_per_token

SUM_BYTES = 4
ACTIVATION_BYTES = 2
"""bf16 activations; a buffer that fixes its own dtype (fp32 logits) says so in its declaration."""


@dataclass(frozen=True, slots=True)
class ActivationRates:
    """Bytes on one device: per token of a chunk, per row of logits, and per image tile."""

    per_token: int
    per_logit_row: int
    per_tile: int
    widest: str


@kept_with(maxsize=512)
def activation_rates(graph: LayerGraph, tp: int, ep: int, *, divided: bool = False) -> ActivationRates:
    """The rates of a layout; everything is proportional to tokens, rows or tiles.

    `divided` says that other ranks have other tokens of the same sequences.
    """
    layout = Layout(tp=tp, ep=ep)
    stream = graph.model.text.stack.width.hidden_size * ACTIVATION_BYTES
    text = [group for group in graph.groups if group.first.scope == "text"]

    def sharded_bytes(group: LayerGroup) -> int:
        passing = _passing_bytes(group, layout) if divided and passes_on(group.first) else 0
        return _bytes(group, group.declaration.live(Work(1, 1)), layout) + passing

    widest = max((group for group in text if group.first.role != "head"), key=sharded_bytes)
    head = next(group for group in text if group.first.role == "head")
    logits = _bytes(head, head.declaration.live(Work(1, 1)), layout)
    return ActivationRates(
        per_token=2 * stream + sharded_bytes(widest),
        per_logit_row=logits,
        per_tile=_tile_bytes(graph, layout),
        widest=f"{widest.first.role} ({widest.first.label})",
    )


@dataclass(frozen=True, slots=True)
class KeptOfLayer:
    """Bytes of one token that a layer's block keeps for the backward pass, and those that it makes again there."""

    kept: int
    again: int


@kept_with(maxsize=1024)
def kept_per_token(graph: LayerGraph, tp: int, ep: int, checkpointing: Checkpointing) -> tuple[KeptOfLayer, ...]:
    """What each layer of the language model keeps of one token on one device.

    `full` keeps a block's input alone, `selective` all but what attention's core makes (`Declaration.recomputed`).
    """
    layout, saved, core = Layout(tp=tp, ep=ep), [0] * graph.num_layers, [0] * graph.num_layers
    for group in graph.groups:
        if group.first.scope == "text":
            buffers = group.declaration.saved(Work(1, 1))
            every = _bytes(group, buffers, layout)
            of_core = tuple(buffer for buffer in buffers if buffer.name in group.declaration.recomputed)
            made_again = _bytes(group, of_core, layout)
            for node in group.nodes:
                if node.layer is not None:
                    saved[node.layer] += every
                    core[node.layer] += made_again
    if checkpointing == "full":
        stream = graph.model.text.stack.width.hidden_size * ACTIVATION_BYTES
        return tuple(KeptOfLayer(stream, size) for size in saved)
    if checkpointing == "none":
        return tuple(KeptOfLayer(size, 0) for size in saved)
    return tuple(KeptOfLayer(size - less, less) for size, less in zip(saved, core, strict=True))


def _bytes(group: LayerGroup, buffers: tuple[Buffer, ...], layout: Layout) -> int:
    layout, total = layout_for(group.first, layout), 0
    for buffer in buffers:
        elements = buffer.rows
        for dim in buffer.dims:
            elements *= shard_size(dim, layout)
        total += elements * (buffer.bytes_per_element or ACTIVATION_BYTES)
    return total


def _passing_bytes(group: LayerGroup, layout: Layout) -> int:
    """Two blocks of what travels, as large as an own one, a block's result, and all blocks' results in fp32."""
    results = (b for b in group.declaration.live(Work(1, 1)) if b.name == "attended")
    width = sum(shard_size(dim, layout) for buffer in results for dim in buffer.dims)
    return 2 * bytes_per_token(group, layout, ACTIVATION_BYTES) + width * (ACTIVATION_BYTES + SUM_BYTES)


def _tile_bytes(graph: LayerGraph, layout: Layout) -> int:
    """The widest moment of the vision tower for one tile, its residual stream twice included."""
    peak = 0
    for group in graph.groups:
        if group.first.scope == "vision":
            work = work_of(graph, group, PassTokens(Work(0, 0), num_tiles=1))
            stream = 2 * work.num_tokens * group.first.width.hidden_size * ACTIVATION_BYTES
            peak = max(peak, stream + _bytes(group, group.declaration.live(work), layout))
    return peak


def serving_bytes(rates: ActivationRates, *, chunk_tokens: int, sequences: int, num_tiles: int) -> int:
    """Peak bytes of a step: `chunk_tokens` tokens prefilled and `sequences` rows of logits given, or the tiles seen."""
    text = max(chunk_tokens, sequences) * rates.per_token + sequences * rates.per_logit_row
    return max(text, num_tiles * rates.per_tile)


def training_bytes(
    rates: ActivationRates, layers: tuple[KeptOfLayer, ...], *, tokens: int, in_flight: int, last: bool
) -> int:
    """Bytes of a stage's activations: what its layers keep of `in_flight` micro-batches of `tokens` tokens.

    Beside them what one layer makes again in the backward pass, and on the last stage logits and their gradient.
    """
    kept = in_flight * sum(layer.kept for layer in layers) + max(layer.again for layer in layers)
    return tokens * (kept + (2 * rates.per_logit_row if last else 0))
