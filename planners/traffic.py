"""What one device sends in a training step: every collective by axis, pass and count, with payload and ring bytes.

The convention, call by call, of one pipeline stage whose device holds the planned shards. Payload and ring bytes are
defined in `planners.communication`; T are the tokens of a data-parallel rank in a step, and s = T x hidden_size x 2 B
its stream; each row is the sum over all micro-batches.

- tp, forward: an all-reduce of s behind attention and behind each feed-forward layer of every block, and behind the
  embedding on the first stage. Backward: an all-reduce of s in front of the same layers (the gradient of what each
  rank was given whole), and in front of the head on the last stage. With full checkpointing each block's forward runs
  once more, its all-reduces included. Cross-entropy over the divided vocabulary: three fp32 numbers a token.
- ep: an all-to-all of a token's stream for each expert it chose, there and back; forward, backward and recomputed. A
  rank of tp sends its whole stream to the rank of the same tp index. Routing is taken as even; indices and scores are
  not counted.
- pp: the stream to the next stage, its gradient to the one before; each rank of tp sends it whole.
- dp: gradients and weights by ZeRO stage. Weights but experts are shared by dp x ep ranks (`dp_ep`), experts by dp.
  0: an all-reduce of gradients a step. 1: a reduce-scatter of gradients and an all-gather of bf16 weights a step.
  2: the reduce-scatter once a micro-batch. 3: as 2, and the all-gather twice a micro-batch, for forward and backward.
  Gradients are sent in the format in which they are kept.

Left out: padding of uneven shards, image tiles, the norm of gradients.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.moe.spec import MoESpec
from l4spec.sharding.layout import Layout
from planners.activations import ACTIVATION_BYTES
from planners.communication import inter_host_bytes, ring_bytes
from planners.plan_types import CollectiveTraffic, TrainTraffic
from planners.sharding import Stage
from planners.tiers import Axis, span_of
from planners.training import WEIGHT_BYTES, TrainSetting, params_on_device

LOSS_NUMBERS, LOSS_BYTES = 3, 4
"""Maximum, sum and the target's logit of a token, in fp32, when the vocabulary is divided."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A collective that is run `calls` times a step, `payload` bytes together."""

    axis: Axis
    collective: str
    what: str
    calls: int
    payload: int


@dataclass(frozen=True, slots=True)
class Load:
    """What a data-parallel rank trains on in one step: `tokens` in `micro_batches`."""

    tokens: int
    micro_batches: int

    @classmethod
    def of(cls, train: TrainSetting, layout: Layout, context: int, batch: int) -> "Load":
        """The share of the busiest rank of `batch` sequences of `context` tokens."""
        sequences = max(-(-batch // (layout.dp * layout.ep)), 1)
        return cls(sequences * context, -(-sequences // min(train.micro_batch, sequences)))


def train_traffic(
    graph: LayerGraph, train: TrainSetting, layout: Layout, load: Load, stages: tuple[Stage, ...], host_size: int | None
) -> TrainTraffic:
    """The traffic of the stage whose device sends the most, among equals of the foremost."""
    found = [stage_traffic(graph, train, layout, load, stage, host_size) for stage in stages]
    return max(found, key=lambda traffic: sum(row.ring_bytes for row in traffic.rows))


def stage_traffic(
    graph: LayerGraph, train: TrainSetting, layout: Layout, load: Load, stage: Stage, host_size: int | None
) -> TrainTraffic:
    """The traffic of one device of a stage in one optimizer step."""
    calls = [
        *_tensor(graph, train, layout, load, stage),
        *_expert(graph, train, layout, load, stage),
        *_pipeline(graph, layout, load, stage),
        *_data(graph, train, layout, load, stage),
    ]
    rows = tuple(_row(call, layout, host_size) for call in calls if call.payload)
    return TrainTraffic(stage=stage.index, tokens=load.tokens, micro_batches=load.micro_batches, rows=rows)


def _row(call: _Call, layout: Layout, host_size: int | None) -> CollectiveTraffic:
    ranks, _ = span_of(layout, call.axis)
    sent = ring_bytes(call.collective, call.payload, ranks)
    outside = None if host_size is None else inter_host_bytes(layout, call.axis, call.collective, sent, host_size)
    return CollectiveTraffic(
        axis=call.axis,
        collective=call.collective,
        what=call.what,
        ranks=ranks,
        calls=call.calls,
        payload_bytes=call.payload,
        ring_bytes=sent,
        intra_host_bytes=None if outside is None else sent - outside,
        inter_host_bytes=outside,
    )


def _stream(graph: LayerGraph) -> int:
    """Bytes of one token's residual stream."""
    return graph.model.text.stack.width.hidden_size * ACTIVATION_BYTES


def _blocks(graph: LayerGraph, stage: Stage) -> Iterator[LayerNode]:
    layers = frozenset(stage.layers)
    return (node for node in graph.nodes if node.scope == "text" and node.layer in layers)


def _tensor(graph: LayerGraph, train: TrainSetting, layout: Layout, load: Load, stage: Stage) -> Iterator[_Call]:
    if layout.tp == 1:
        return
    stream, micro = load.tokens * _stream(graph), load.micro_batches
    layers = sum(node.role in ("attention", "ffn") for node in _blocks(graph, stage))
    passes = [("forward", layers + stage.first), ("backward", layers + stage.last)]
    if train.checkpointing == "full":
        passes.append(("recomputed", layers))
    for name, count in passes:
        yield _Call("tp", "all-reduce", f"activations, {name}", count * micro, count * stream)
    if stage.last:
        payload = LOSS_NUMBERS * LOSS_BYTES * load.tokens
        yield _Call("tp", "all-reduce", "loss over the divided vocabulary", LOSS_NUMBERS * micro, payload)


def _expert(graph: LayerGraph, train: TrainSetting, layout: Layout, load: Load, stage: Stage) -> Iterator[_Call]:
    if layout.ep == 1:
        return
    mixtures = [node.spec.num_experts_per_token for node in _blocks(graph, stage) if isinstance(node.spec, MoESpec)]
    passes = ["forward", "backward", *(["recomputed"] if train.checkpointing == "full" else [])]
    for name in passes:
        payload = 2 * sum(mixtures) * load.tokens * _stream(graph)
        yield _Call("ep", "all-to-all", f"routed tokens, {name}", 2 * len(mixtures) * load.micro_batches, payload)


def _pipeline(graph: LayerGraph, layout: Layout, load: Load, stage: Stage) -> Iterator[_Call]:
    payload = load.tokens * _stream(graph)
    if not stage.last:
        yield _Call("pp", "send", "activations, forward", load.micro_batches, payload)
    if not stage.first:
        yield _Call("pp", "send", "gradients, backward", load.micro_batches, payload)


def _data(graph: LayerGraph, train: TrainSetting, layout: Layout, load: Load, stage: Stage) -> Iterator[_Call]:
    dense, experts = params_on_device(graph, layout, stage)
    shares: tuple[tuple[Axis, str, int], ...] = (("dp_ep", "weights but experts", dense), ("dp", "experts", experts))
    for axis, what, number in shares:
        if span_of(layout, axis)[0] > 1:
            yield from _synchronised(train, load, axis, what, number)


def _synchronised(train: TrainSetting, load: Load, axis: Axis, what: str, number: int) -> Iterator[_Call]:
    """Gradients and weights of `number` parameters on a device, by ZeRO stage."""
    zero, gradients, weights = train.zero_stage, number * train.gradient_bytes, number * WEIGHT_BYTES
    times = load.micro_batches if zero >= 2 else 1
    collective = "all-reduce" if zero == 0 else "reduce-scatter"
    yield _Call(axis, collective, f"gradients of {what}", times, times * gradients)
    if zero:
        gathers = 2 * load.micro_batches if zero == 3 else 1
        yield _Call(axis, "all-gather", what, gathers, gathers * weights)
