"""Activation memory of one device: while serving, and while training.

Serving: peak of one prefill chunk = max(2 x residual stream + live buffers of the largest layer, logits). Attention
keeps no score matrix (flash attention). Routed tokens are assumed spread evenly over expert-parallel ranks. Where a
sequence's tokens are divided among ranks, a layer that sees those of other ranks holds two more blocks of what travels,
and two results, one of them in fp32. Training: the tensors that autograd saves for the backward pass.
"""

from dataclasses import dataclass
from typing import NamedTuple

from l4spec.graph.adapters import Adapted, Lora, adapted, has_place, short_name
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerGroup
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.layers.declaration import Buffer, Work
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import layout_for, shard_size
from l4spec.sharding.sequence import passes_on
from l4spec.sharding.token_split import LAYER_INPUT, token_use
from l4spec.units import ceil_div
from planners.counts.cost_sheet import PassTokens, work_of
from planners.counts.kv_cache import bytes_per_token

SUM_BYTES = 4
_MANY = 1 << 20
"""Tokens of which experts that choose tokens take whole numbers, nearly."""
ACTIVATION_BYTES = 2
"""bf16 activations; a buffer with a fixed dtype (fp32 logits) declares it."""
_MASK_BYTES = 1
"""Of an entry of a dropout's mask."""


class ActivationRates(NamedTuple):
    """Bytes on one device: per token of a chunk, per row of logits, and per image tile."""

    per_token: int
    per_logit_row: int
    per_tile: int
    widest: str


@kept_with(maxsize=512)
def activation_rates(graph: LayerGraph, tp: int, ep: int, *, divided: bool = False) -> ActivationRates:
    """The rates of a layout; everything is proportional to tokens, rows or tiles.

    `divided`: other ranks have other tokens of the same sequences.
    """
    layout = Layout(tp=tp, ep=ep)
    stream = graph.stream_width * ACTIVATION_BYTES
    text = [group for group in graph.groups if group.first.scope == "text"]

    def sharded_bytes(group: LayerGroup) -> int:
        passing = _passing_bytes(group, layout) if divided and passes_on(group.first) else 0
        return buffer_bytes(group, group.declaration.live(Work(1, 1)), layout) + passing

    widest = max((group for group in text if group.first.role != "head"), key=sharded_bytes)
    head = next(group for group in text if group.first.role == "head")
    logits = buffer_bytes(head, head.declaration.live(Work(1, 1)), layout)
    return ActivationRates(
        per_token=2 * stream + sharded_bytes(widest),
        per_logit_row=logits,
        per_tile=_tile_bytes(graph, tp),
        widest=f"{widest.first.role} ({widest.first.label})",
    )


class KeptOfLayer(NamedTuple):
    """Bytes of one token that a layer's block keeps for the backward pass, and those that it makes again there."""

    kept: int
    again: int


@kept_with(maxsize=1024)
def kept_per_token(
    graph: LayerGraph,
    tp: int,
    ep: int,
    checkpointing: Checkpointing,
    *,
    split: bool = False,
    unsaved: frozenset[str] = frozenset(),
    lora: Lora | None = None,
) -> tuple[KeptOfLayer, ...]:
    """Activation bytes that each layer of the language model saves per token on one device.

    `full` saves a block's input alone, `selective` everything except the results of attention's core
    (`Declaration.recomputed`). With `split` (sequence parallelism), ranks of tp save a share of the stream, of norms
    and of the gathered inputs of cut layers, which are gathered again in the backward pass. Buffers named in `unsaved`
    are not kept at all. With `lora`, a frozen product saves no input; an adapter saves its own, of which several share
    one, and what is between its two products.
    """
    layers = _saved_per_token(graph, tp, ep, unsaved, lora)
    stream = graph.stream_width * ACTIVATION_BYTES
    if not split:
        if checkpointing == "full":
            return tuple(KeptOfLayer(stream, layer.every) for layer in layers)
        again = [layer.core if checkpointing == "selective" else 0 for layer in layers]
        return tuple(KeptOfLayer(layer.every - less, less) for layer, less in zip(layers, again, strict=True))
    if checkpointing == "full":
        own = ceil_div(stream, tp)
        return tuple(KeptOfLayer(own, layer.every - layer.own + ceil_div(layer.own, tp)) for layer in layers)
    kept = []
    for layer in layers:
        divided, again_here = layer.own + layer.gathered, layer.core if checkpointing == "selective" else 0
        kept.append(KeptOfLayer(layer.every - again_here - divided + ceil_div(divided, tp), again_here + stream))
    return tuple(kept)


@dataclass(slots=True)
class _Saved:
    """Bytes that autograd keeps of one token in a layer's block.

    Saved bytes: in all, of attention's core, of token-wise layers, and of the inputs of cut layers.
    """

    every: int = 0
    core: int = 0
    own: int = 0
    gathered: int = 0


@kept_with(maxsize=512)
def _saved_per_token(
    graph: LayerGraph, tp: int, ep: int, unsaved: frozenset[str], lora: Lora | None
) -> tuple[_Saved, ...]:
    layout, layers = Layout(tp=tp, ep=ep), tuple(_Saved() for _ in range(graph.num_layers))
    for group in graph.groups:
        if group.first.scope != "text":
            continue
        use, recomputed = token_use(group.first), group.declaration.recomputed
        tokens = _MANY if group.declaration.routed is not None and group.declaration.routed.experts_choose else 1
        work = Work(1, tokens, phase="train")
        saved = group.declaration.saved(work) if lora is None else _saved_beside_frozen(group, work, lora)
        buffers = tuple(b for b in saved if b.name not in unsaved)
        every = ceil_div(buffer_bytes(group, buffers, layout), tokens)
        core = ceil_div(buffer_bytes(group, tuple(b for b in buffers if b.name in recomputed), layout), tokens)
        own = every if use == "own" else 0
        inputs = tuple(b for b in buffers if use == "cut" and b.name == LAYER_INPUT)
        gathered = ceil_div(buffer_bytes(group, inputs, layout), tokens)
        for node in group.nodes:
            if node.layer is not None:
                of_layer = layers[node.layer]
                of_layer.every += every
                of_layer.core += core
                of_layer.own += own
                of_layer.gathered += gathered
    return layers


def _saved_beside_frozen(group: LayerGroup, work: Work, lora: Lora) -> tuple[Buffer, ...]:
    """Saved buffers of a layer with frozen weights and adapters.

    With dropout each adapter saves its dropped input and a mask instead of the layer's own.
    """
    adapters = adapted(group.declaration, work, lora) if has_place(group.first) else ()
    reading = frozenset[str]() if lora.dropout else frozenset(short_name(each.base) for each in adapters)
    needed = (b for b in group.declaration.saved(work) if not b.gradient_of or reading & set(b.gradient_of))
    return (*needed, *(buffer for each in adapters for buffer in _saved_of_adapter(each, dropout=lora.dropout)))


def _saved_of_adapter(each: Adapted, *, dropout: bool) -> tuple[Buffer, ...]:
    between = Buffer("lora", each.rows, (each.up.dims[-1],))
    if not dropout:
        return (between,)
    dropped = Buffer("lora_dropped", each.rows, (each.down.dims[-1],))
    mask = Buffer("lora_mask", each.rows, (each.down.dims[-1],), bytes_per_element=_MASK_BYTES)
    return between, dropped, mask


@kept_with(maxsize=512)
def saved_per_token(graph: LayerGraph, tp: int, ep: int, names: frozenset[str]) -> tuple[int, ...]:
    """Bytes of one token of the named saved buffers, of each layer of the language model."""
    layout, layers = Layout(tp=tp, ep=ep), [0] * graph.num_layers
    for group in graph.groups:
        if group.first.scope == "text":
            buffers = tuple(b for b in group.declaration.saved(Work(1, 1, phase="train")) if b.name in names)
            own = buffer_bytes(group, buffers, layout)
            for node in group.nodes:
                if node.layer is not None:
                    layers[node.layer] += own
    return tuple(layers)


_PASSED = frozenset({"key", "value"})


@kept_with(maxsize=512)
def passed_per_token(graph: LayerGraph, tp: int, piece: int = 1) -> tuple[int, ...]:
    """Bytes of one token's keys and values on one device, of each layer whose ranks pass them along cp in training.

    As attention takes them: of a latent they are expanded. `piece` are the tokens of a piece of a sequence: chunked
    layers pass nothing where pieces are whole chunks. A window passes all of them, as trainers do.
    """
    passed = list(saved_per_token(graph, tp, 1, _PASSED))
    for group in graph.groups:
        mixing = group.declaration.mixing
        reach = None if mixing is None else mixing.reach
        if reach is not None and reach.kind == "chunk" and reach.size and piece % reach.size == 0:
            for node in group.nodes:
                if node.layer is not None:
                    passed[node.layer] = 0
    return tuple(passed)


def buffer_bytes(group: LayerGroup, buffers: tuple[Buffer, ...], layout: Layout) -> int:
    """Bytes on one device of buffers that a layer of a group declares."""
    layout, total = layout_for(group.first, layout), 0
    for buffer in buffers:
        elements = buffer.rows
        for dim in buffer.dims:
            elements *= shard_size(dim, layout)
        total += elements * (buffer.bytes_per_element or ACTIVATION_BYTES)
    return total


def _passing_bytes(group: LayerGroup, layout: Layout) -> int:
    """Two blocks of passed rows, as large as an own one, a block's result, and all blocks' results in fp32."""
    results = (b for b in group.declaration.live(Work(1, 1)) if b.name == "attended")
    width = sum(shard_size(dim, layout) for buffer in results for dim in buffer.dims)
    return 2 * bytes_per_token(group, layout, ACTIVATION_BYTES) + width * (ACTIVATION_BYTES + SUM_BYTES)


@kept_with(maxsize=64)
def _tile_bytes(graph: LayerGraph, tp: int) -> int:
    """The widest moment of the vision tower for one tile, its residual stream twice included; ep divides none of it."""
    layout, peak = Layout(tp=tp), 0
    for group in graph.groups:
        if group.first.scope == "vision":
            work = work_of(graph, group, PassTokens(Work(0, 0), num_tiles=1))
            stream = 2 * work.num_tokens * group.first.width.hidden_size * ACTIVATION_BYTES
            peak = max(peak, stream + buffer_bytes(group, group.declaration.live(work), layout))
    return peak


def serving_bytes(rates: ActivationRates, *, chunk_tokens: int, sequences: int, num_tiles: int) -> int:
    """Peak bytes of a step: `chunk_tokens` tokens prefilled and `sequences` rows of logits given, or the tiles seen."""
    text = max(chunk_tokens, sequences) * rates.per_token + sequences * rates.per_logit_row
    return max(text, num_tiles * rates.per_tile)
