"""What one device sends in a training step: every collective by axis, pass and count, with payload and ring bytes.

The convention, call by call, of one pipeline stage whose device holds the planned shards. Payload and ring bytes are
defined in `planners.collectives.communication`; T are the tokens of a data-parallel rank in a step, and s = T x
hidden_size x 2 B its stream; each row is the sum over all micro-batches.

- tp, forward: an all-reduce of s behind attention and behind each feed-forward layer of every block, and behind the
  embedding on the first stage. Backward: an all-reduce of s in front of the same layers (the gradient of what each
  rank was given whole), and in front of the head on the last stage. With full checkpointing each block's forward runs
  once more, its all-reduces included. Cross-entropy over the divided vocabulary: three fp32 numbers a token.
- ep: an all-to-all of a token's stream for each expert it chose, there and back; forward, backward and recomputed. A
  rank of tp sends its whole stream to the rank of the same tp index. Routing is taken as even; indices and scores are
  not counted.
- dp and ep, of each mixture that is balanced over ranks: an all-reduce of fp32 loads of experts for its auxiliary
  loss, or an all-gather of fp32 scores of every token and expert where experts choose, once a micro-batch.
- pp: the stream to the next stage, its gradient to the one before; each rank of tp sends it whole.
- dp: gradients and weights by ZeRO stage. Weights but experts are shared by dp x ep ranks (`dp_ep`), experts by dp.
  0: an all-reduce of gradients a step. 1: a reduce-scatter of gradients and an all-gather of bf16 weights a step.
  2: the reduce-scatter once a micro-batch. 3: as 2, and the all-gather twice a micro-batch, for forward and backward;
  once for what stands outside the blocks (embedding, last norm, head, vision), which is kept in between as FSDP2 keeps
  its root. Gradients are sent in the format in which they are kept.
- tp, behind the backward pass: what its ranks hold whole inside a layer that they cut (a router, norms of queries) has
  a part of its gradient on each; once a step an all-reduce adds them up, of shards where ZeRO 2 or 3 has made such. KV
  heads that neighbours hold together are added up among these.

Left out: padding of uneven shards, image tiles, the norm of gradients.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Dim, Parameter, RoutedExperts
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import MESH_AXIS, shard_shape
from planners.collectives.communication import inter_host_bytes, ring_bytes
from planners.collectives.link_tiers import Axis, span_of
from planners.device.activations import ACTIVATION_BYTES
from planners.device.stages import Stage
from planners.device.training_state import WEIGHT_BYTES, TrainSetting, ends_on_device, params_on_device
from planners.plan_types import CollectiveTraffic, TrainTraffic

BALANCE_BYTES = 4
"""Loads and scores of experts are fp32."""
BALANCE = ("expert loads", "router scores")
"""What is sent to balance experts."""
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
    neighbours: int | None = None
    """Ranks of a group that is only a part of the axis."""


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
    graph: LayerGraph,
    train: TrainSetting,
    layout: Layout,
    load: Load,
    stage: Stage,
    host_size: int | None,
    *,
    data_place: tuple[int, int] = (0, 0),
) -> TrainTraffic:
    """The traffic of one device of a stage in one optimizer step.

    Where ZeRO shares tensors unevenly, tensor-parallel ranks add up the shares of the rank at `data_place`, its places
    along dp and ep: by default the first, whose shares are the largest.
    """
    calls = [
        *_tensor(graph, train, layout, load, stage, data_place),
        *_expert(graph, train, layout, load, stage),
        *_balance(graph, layout, load, stage),
        *_pipeline(graph, layout, load, stage),
        *_data(graph, train, layout, load, stage),
    ]
    rows = tuple(_row(call, layout, host_size) for call in calls if call.payload)
    return TrainTraffic(stage=stage.index, tokens=load.tokens, micro_batches=load.micro_batches, rows=rows)


def _row(call: _Call, layout: Layout, host_size: int | None) -> CollectiveTraffic:
    ranks = call.neighbours or span_of(layout, call.axis)[0]
    if call.neighbours is not None:
        layout = Layout(tp=ranks, dp=layout.num_devices // ranks)
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


def _mixtures(graph: LayerGraph, stage: Stage) -> list[RoutedExperts]:
    declared = (node.declaration.routed for node in _blocks(graph, stage))
    return [routed for routed in declared if routed is not None]


def _tensor(
    graph: LayerGraph, train: TrainSetting, layout: Layout, load: Load, stage: Stage, data_place: tuple[int, int]
) -> Iterator[_Call]:
    if layout.tp == 1:
        return
    stream, micro = load.tokens * _stream(graph), load.micro_batches
    layers = sum(node.role in ("attention", "ffn") for node in _blocks(graph, stage))
    passes = [("forward", layers + stage.first), ("backward", layers + stage.last)]
    if train.checkpointing == "full":
        passes.append(("recomputed", layers))
    for name, count in passes:
        yield _Call("tp", "all-reduce", f"activations, {name}", count * micro, count * stream)
    yield from _partial_gradients(graph, train, layout, stage, data_place)
    if stage.last:
        payload = LOSS_NUMBERS * LOSS_BYTES * load.tokens
        yield _Call("tp", "all-reduce", "loss over the divided vocabulary", LOSS_NUMBERS * micro, payload)


def _partial_gradients(
    graph: LayerGraph, train: TrainSetting, layout: Layout, stage: Stage, data_place: tuple[int, int]
) -> Iterator[_Call]:
    """Gradients that tensor-parallel ranks add up: of what all of them hold whole, and of repeated KV heads."""
    whole, repeated = 0, dict[int, int]()
    for node in _blocks(graph, stage):
        if not any(_over_tp(dim) for parameter in node.declaration.parameters for dim in parameter.dims):
            continue
        for parameter in node.declaration.parameters:
            held = _gradients_held(node, parameter, train, layout, data_place)
            cut = [dim for dim in parameter.dims if _over_tp(dim)]
            shared = next((dim for dim in cut if dim.axis == "kv_heads" and layout.tp > dim.units), None)
            if not cut and not parameter.buffer:
                whole += held
            elif shared is not None:
                repeats = layout.tp // shared.units
                repeated[repeats] = repeated.get(repeats, 0) + held
    size = train.gradient_bytes
    yield _Call("tp", "all-reduce", "gradients of what is held whole", 1, whole * size)
    for repeats, number in repeated.items():
        yield _Call("tp", "all-reduce", "gradients of repeated KV heads", 1, number * size, repeats)


def _over_tp(dim: Dim) -> bool:
    return MESH_AXIS.get(dim.axis) == "tp"


def _gradients_held(
    node: LayerNode, parameter: Parameter, train: TrainSetting, layout: Layout, data_place: tuple[int, int]
) -> int:
    """Elements of a tensor's gradient on one of the ranks that share it, along its first dim (FSDP2)."""
    first, *rest = shard_shape(node, parameter, layout)
    if train.zero_stage < 2:
        return first * prod(rest)
    dp, ep = data_place
    is_expert = parameter.role == "expert"
    share = -(-first // (layout.dp if is_expert else layout.dp * layout.ep))
    start = share * (dp if is_expert else dp * layout.ep + ep)
    return max(0, min(share, first - start)) * prod(rest)


def _expert(graph: LayerGraph, train: TrainSetting, layout: Layout, load: Load, stage: Stage) -> Iterator[_Call]:
    if layout.ep == 1:
        return
    mixtures = [routed.trained_per_token for routed in _mixtures(graph, stage)]
    passes = ["forward", "backward", *(["recomputed"] if train.checkpointing == "full" else [])]
    for name in passes:
        payload = 2 * round(sum(mixtures) * load.tokens) * _stream(graph)
        yield _Call("ep", "all-to-all", f"routed tokens, {name}", 2 * len(mixtures) * load.micro_batches, payload)


def _balance(graph: LayerGraph, layout: Layout, load: Load, stage: Stage) -> Iterator[_Call]:
    loads: dict[Axis, list[int]] = {"dp_ep": [], "ep": []}
    scored = []
    for routed in _mixtures(graph, stage):
        if routed.loads_counted_over in ("batch", "ep_group"):
            loads["ep" if routed.loads_counted_over == "ep_group" else "dp_ep"].append(routed.num_experts)
        if routed.experts_choose:
            scored.append(routed.num_experts)
    times = load.micro_batches
    for axis, experts in loads.items():
        if span_of(layout, axis)[0] > 1:
            calls = times * len(experts)
            yield _Call(axis, "all-reduce", BALANCE[0], calls, times * sum(experts) * BALANCE_BYTES)
    data = span_of(layout, "dp_ep")[0]
    if data > 1:
        yield _Call(
            "dp_ep", "all-gather", BALANCE[1], times * len(scored), data * load.tokens * sum(scored) * BALANCE_BYTES
        )


def _pipeline(graph: LayerGraph, layout: Layout, load: Load, stage: Stage) -> Iterator[_Call]:
    payload = load.tokens * _stream(graph)
    if not stage.last:
        yield _Call("pp", "send", "activations, forward", load.micro_batches, payload)
    if not stage.first:
        yield _Call("pp", "send", "gradients, backward", load.micro_batches, payload)


def _data(graph: LayerGraph, train: TrainSetting, layout: Layout, load: Load, stage: Stage) -> Iterator[_Call]:
    dense, experts = params_on_device(graph, layout, stage)
    ends = ends_on_device(graph, layout, stage)
    shares: tuple[tuple[Axis, str, int, int], ...] = (
        ("dp_ep", "dense weights of blocks", dense - ends, 2),
        ("dp_ep", "weights outside blocks", ends, 1),
        ("dp", "experts", experts, 2),
    )
    for axis, what, number, gathers in shares:
        if span_of(layout, axis)[0] > 1:
            yield from _synchronised(train, load, axis, what, (number, gathers))


def _synchronised(train: TrainSetting, load: Load, axis: Axis, what: str, share: tuple[int, int]) -> Iterator[_Call]:
    """Of a share (parameters on a device, gathers a micro-batch with ZeRO 3) the gradients and weights, by stage."""
    zero, (number, gathers) = train.zero_stage, share
    times = load.micro_batches if zero >= 2 else 1
    collective = "all-reduce" if zero == 0 else "reduce-scatter"
    yield _Call(axis, collective, f"gradients of {what}", times, times * number * train.gradient_bytes)
    if zero:
        calls = gathers * load.micro_batches if zero == 3 else 1
        yield _Call(axis, "all-gather", what, calls, calls * number * WEIGHT_BYTES)
