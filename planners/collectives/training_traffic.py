"""Traffic of one device in a training step: every collective by axis, pass and count, with payload and ring bytes.

The convention, call by call, of one pipeline stage whose device holds the planned shards. Payload and ring bytes are
defined in `planners.collectives.communication`; T are the tokens of a device in a step (those of its data-parallel
rank, over cp), and s = T x hidden_size x 2 B its stream; each row is the sum over all micro-batches.

- tp, forward: an all-reduce of s after attention and after each feed-forward layer of every block, and after the
  embedding on the first stage. Backward: an all-reduce of s in front of the same layers (the gradient of what each
  rank was given whole), and in front of the head on the last stage. With full checkpointing each block's forward runs
  once more up to the last tensor that the backward pass needs: its all-reduces, except for one after which nothing is
  kept, as that of the last layer in front of a sum. Selective checkpointing sends nothing again. Cross-entropy over the
  divided vocabulary: three fp32 numbers per token.
  With sequence parallelism (`shares`) a layer in a block gathers s in front of it and scatters s after it, forward, and
  backward the other way round; for the gradient of its weights it gathers s once more, unless its block runs once
  more. The embedding scatters s, the head gathers it, a layer that every rank does the same for gathers it.
- ep: an all-to-all of a token's stream for each expert it chose, there and back; forward, backward and recomputed. A
  rank of tp sends its whole stream to the rank of the same tp index. Routing is taken as even; indices and scores are
  not counted.
- dp and ep, of each mixture that is balanced over ranks: an all-reduce of fp32 loads of experts for its auxiliary
  loss (over cp, of each sequence, where loads are those of a sequence), or an all-gather of fp32 scores of every token
  and expert where experts choose, once a micro-batch.
- cp: `planners.collectives.key_value_ring`.
- pp: the stream to the next stage, its gradient to the one before; each rank of tp sends it whole, or its share of the
  tokens with sequence parallelism. v virtual stages send v times as often, the last stage to the first.
- dp: gradients and weights by ZeRO stage. Weights but experts are shared by dp x ep ranks (`dp_ep`), experts by dp;
  with cp by `dp_ep_cp` and `dp_cp`, since ranks along cp have the same weights.
  0: an all-reduce of gradients a step. 1: a reduce-scatter of gradients and an all-gather of bf16 weights a step.
  2: the reduce-scatter once a micro-batch. 3: as 2, and the all-gather twice a micro-batch, for forward and backward;
  once for what stands outside the blocks (embedding, last norm, head, vision), which is kept in between as FSDP2 keeps
  its root. Gradients are sent in the format in which they are kept.
  With adapters (LoRA) gradients, and weights of ZeRO 1 and 2, are the adapters' alone; ZeRO 3 gathers the frozen model
  too, packed where it is packed.
- tp, after the backward pass: what its ranks hold whole inside a layer that they cut (a router, norms of queries) has
  a part of its gradient on each, and so have norms with sequence parallelism; once a step an all-reduce adds them up,
  of shards where ZeRO 2 or 3 has made such. KV heads that neighbours hold together are added up among these.

Left out: padding of uneven shards, image tiles, the norm of gradients. The tiers of sends are those of a chain, with
virtual stages too.
"""

from collections.abc import Iterator
from math import prod

from l4spec.graph.adapters import adapters_of
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerGroup, LayerNode
from l4spec.layers.declaration import Dim, Parameter, RoutedExperts, Work
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import MESH_AXIS, is_after_blocks, shard_shape
from l4spec.sharding.token_split import is_cut, token_use
from l4spec.units import ceil_div
from planners.collectives.collectives import (
    Collective,
    adds_up,
    groups_of_stage,
    inter_host_bytes,
    ranks_of,
)
from planners.collectives.key_value_ring import key_value_ring
from planners.collectives.link_tiers import Axis
from planners.collectives.step_tokens import StepTokens
from planners.device.activations import ACTIVATION_BYTES
from planners.device.stages import PipelineStage
from planners.device.training_state import (
    WEIGHT_BYTES,
    TrainSetting,
    ends_on_device,
    gathered_parts,
    params_on_device,
)
from planners.plan_types import CollectiveTraffic, TrainTraffic

BALANCE_BYTES = 4
"""Loads and scores of experts are fp32."""
GATHER, SCATTER = "all-gather", "reduce-scatter"
BALANCE = ("expert loads", "router scores")
"""Rows of traffic that balance experts."""
LOSS_NUMBERS, LOSS_BYTES = 3, 4
"""Maximum, sum and the target's logit of a token, in fp32, when the vocabulary is divided."""


def train_traffic(
    graph: LayerGraph,
    train: TrainSetting,
    layout: Layout,
    load: StepTokens,
    stages: tuple[PipelineStage, ...],
    host_size: int | None,
) -> TrainTraffic:
    """The traffic of the stage whose device sends the most, among equals of the foremost."""
    by_stage = [stage_traffic(graph, train, layout, load, stage, host_size) for stage in stages]
    return max(by_stage, key=lambda traffic: sum(row.ring_bytes for row in traffic.rows))


def stage_traffic(
    graph: LayerGraph,
    train: TrainSetting,
    layout: Layout,
    load: StepTokens,
    stage: PipelineStage,
    host_size: int | None,
    *,
    data_place: tuple[int, int] = (0, 0),
) -> TrainTraffic:
    """The traffic of one device of a stage in one optimizer step.

    Where ZeRO shares tensors unevenly, tensor-parallel ranks add up the shares of the rank at `data_place`, its places
    along dp and ep: by default the first, whose shares are the largest.
    """
    listed = training_collectives(graph, train, layout, load, stage, data_place=data_place)
    rows = tuple(_row(each, layout, host_size) for each in listed)
    return TrainTraffic(stage=stage.index, tokens=load.tokens, micro_batches=load.micro_batches, rows=rows)


def training_collectives(
    graph: LayerGraph,
    train: TrainSetting,
    layout: Layout,
    load: StepTokens,
    stage: PipelineStage,
    *,
    data_place: tuple[int, int] = (0, 0),
) -> tuple[Collective, ...]:
    """Collectives of a device of a stage in one optimizer step: all passes, gradients and weights."""
    recomputes, chunks = train.checkpointing == "full", train.virtual_stages
    split = train.sequence_parallel and layout.tp > 1
    listed = (
        *(shares if split else reductions)(graph, layout, load, stage.index, recomputes=recomputes, chunks=chunks),
        *_partial_gradients(graph, train, layout, stage, data_place),
        *_loss(layout, load, stage),
        *exchanges(graph, layout, load, stage.index, recomputes=recomputes, chunks=chunks),
        *key_value_ring(graph, layout, stage.layers, load, recomputes=train.checkpointing != "none"),
        *_balance(graph, layout, load, stage),
        *_pipeline(graph, layout, load, stage, chunks, divided_by=layout.tp if split else 1),
        *data_collectives(graph, train, layout, load, stage),
    )
    return tuple(each for each in listed if each.payload)


def reductions(
    graph: LayerGraph, layout: Layout, load: StepTokens, stage: int, *, recomputes: bool, chunks: int = 1
) -> Iterator[Collective]:
    """All-reduces over tp: of layers' outputs in forward and recomputed passes, and of their inputs' gradients."""
    if layout.tp == 1:
        return
    stream, counts = load.tokens * graph.hidden_size * ACTIVATION_BYTES, _num_reductions(graph, layout, stage, chunks)
    for name in _passes(recomputes):
        calls, payload = counts[name] * load.micro_batches, counts[name] * stream
        yield Collective("tp", "all-reduce", f"activations, {name}", calls, payload, layout.tp)


@kept_with(maxsize=1024)
def _num_reductions(graph: LayerGraph, layout: Layout, stage: int, chunks: int) -> dict[str, int]:
    """All-reduces of a micro-batch by pass."""
    groups, last = groups_of_stage(graph, layout, stage, chunks), _last_of_blocks(graph)
    reduced = [group for group in groups if adds_up(group, layout)]
    blocks = sum(group.count for group in reduced if group.first.layer is not None)
    head = sum(group.count for group in groups if group.first.role == "head")
    again = sum(node.id not in last for group in reduced for node in group.nodes if node.layer is not None)
    return {"forward": sum(group.count for group in reduced), "backward": blocks + head, "recomputed": again}


def shares(
    graph: LayerGraph, layout: Layout, load: StepTokens, stage: int, *, recomputes: bool, chunks: int = 1
) -> Iterator[Collective]:
    """With sequence parallelism, instead of `reductions`: tokens that tp gathers and sums that it scatters."""
    if layout.tp == 1:
        return
    stream, groups = load.tokens * graph.hidden_size * ACTIVATION_BYTES, groups_of_stage(graph, layout, stage, chunks)
    calls: dict[tuple[str, str], int] = {}
    for group in groups:
        for (name, operation), each in _calls_of_shares(graph, group, recomputes=recomputes).items():
            calls[name, operation] = calls.get((name, operation), 0) + each
    for (name, operation), count in calls.items():
        if name in _passes(recomputes):
            number, payload = count * load.micro_batches, count * stream
            yield Collective("tp", operation, f"activations, {name}", number, payload, layout.tp)


def _calls_of_shares(graph: LayerGraph, group: LayerGroup, *, recomputes: bool) -> dict[tuple[str, str], int]:
    """Calls of equal layers in one micro-batch, by pass and collective.

    The input that a layer has gathered is gathered again for its weights' gradient, unless its block runs once more.
    """
    use, count = token_use(group.first), group.count
    in_blocks = sum(node.layer is not None for node in group.nodes)
    if use == "embedding":
        return {("forward", SCATTER): count, ("backward", GATHER): count}
    if use == "head":
        return {("forward", GATHER): count, ("backward", GATHER): count, ("backward", SCATTER): count}
    sees_images = len(set(group.declaration.inputs)) > 1
    if use == "whole" and not sees_images:  # images are left out, and without them the text passes
        return {("forward", GATHER): count, ("backward", GATHER): count, ("recomputed", GATHER): in_blocks}
    if use != "cut":
        return {}
    return {
        ("forward", GATHER): count,
        ("forward", SCATTER): count,
        ("backward", GATHER): count if recomputes else 2 * count,
        ("backward", SCATTER): count,
        ("recomputed", GATHER): in_blocks,
        ("recomputed", SCATTER): sum(
            node.id not in _last_of_blocks(graph) for node in group.nodes if node.layer is not None
        ),
    }


@kept_with()
def _last_of_blocks(graph: LayerGraph) -> frozenset[str]:
    """Ids of the layers after which their block keeps nothing for the backward pass."""
    saves: dict[int, str] = {}
    for node in graph.nodes:
        if node.scope == "text" and node.layer is not None and node.declaration.saved(Work(1, 1)):
            saves[node.layer] = node.id
    return frozenset(saves.values())


def exchanges(
    graph: LayerGraph, layout: Layout, load: StepTokens, stage: int, *, recomputes: bool, chunks: int = 1
) -> Iterator[Collective]:
    """All-to-alls over ep of every pass: tokens to the experts that they go through in training, and back."""
    declared = ((group.count, group.declaration.routed) for group in groups_of_stage(graph, layout, stage, chunks))
    routed = [(count, experts) for count, experts in declared if experts is not None]
    if layout.ep == 1 or not routed:
        return
    calls, payload = 2 * sum(count for count, _ in routed), 0
    for width in {experts.sent_width(graph.hidden_size) for _, experts in routed}:
        each = [n * item.trained_per_token for n, item in routed if item.sent_width(graph.hidden_size) == width]
        payload += 2 * round(sum(each) * load.tokens) * width * ACTIVATION_BYTES
    for name in _passes(recomputes):
        yield Collective("ep", "all-to-all", f"routed tokens, {name}", calls * load.micro_batches, payload, layout.ep)


def _passes(recomputes: bool) -> tuple[str, ...]:
    return ("forward", "backward", "recomputed") if recomputes else ("forward", "backward")


def _loss(layout: Layout, load: StepTokens, stage: PipelineStage) -> Iterator[Collective]:
    if layout.tp > 1 and stage.last:
        calls, payload = LOSS_NUMBERS * load.micro_batches, LOSS_NUMBERS * LOSS_BYTES * load.tokens
        yield Collective("tp", "all-reduce", "loss over the divided vocabulary", calls, payload, layout.tp)


def _pipeline(
    graph: LayerGraph, layout: Layout, load: StepTokens, stage: PipelineStage, chunks: int, *, divided_by: int
) -> Iterator[Collective]:
    stream = load.tokens * graph.stream_width * ACTIVATION_BYTES // divided_by
    for tensor, is_end in (("activations, forward", stage.last), ("gradients, backward", stage.first)):
        if times := chunks - is_end:
            yield Collective("pp", "send", tensor, times * load.micro_batches, times * stream, layout.pp)


def _row(each: Collective, layout: Layout, host_size: int | None) -> CollectiveTraffic:
    if each.neighbours:
        layout = Layout(tp=each.ranks, dp=layout.num_devices // each.ranks)
    sent = each.ring_bytes
    outside = None if host_size is None else inter_host_bytes(layout, each.axis, each.operation, sent, host_size)
    return CollectiveTraffic(
        axis=each.axis,
        collective=each.operation,
        what=each.tensor,
        ranks=each.ranks,
        calls=each.calls,
        payload_bytes=each.payload,
        ring_bytes=sent,
        intra_host_bytes=None if outside is None else sent - outside,
        inter_host_bytes=outside,
    )


def _blocks(graph: LayerGraph, stage: PipelineStage, *, ends: bool = False) -> Iterator[LayerNode]:
    """The text layers in a stage's blocks; with `ends` also those before the first block and after the last."""
    layers = frozenset(stage.layers)
    for node in graph.nodes:
        outside = node.layer is None and (stage.last if is_after_blocks(node) else stage.first)
        if node.scope == "text" and (node.layer in layers or (ends and outside)):
            yield node


def _mixtures(graph: LayerGraph, stage: PipelineStage) -> list[RoutedExperts]:
    declared = (node.declaration.routed for node in _blocks(graph, stage))
    return [routed for routed in declared if routed is not None]


def _partial_gradients(
    graph: LayerGraph, train: TrainSetting, layout: Layout, stage: PipelineStage, data_place: tuple[int, int]
) -> Iterator[Collective]:
    """Gradients that tensor-parallel ranks sum: of tensors that each has whole, and of repeated KV heads."""
    if layout.tp == 1:
        return
    whole, repeated = 0, dict[int, int]()
    for node in _blocks(graph, stage, ends=train.sequence_parallel):
        is_shared = train.sequence_parallel and token_use(node) == "own"
        if not is_shared and (not is_cut(node) or node.layer is None):
            continue
        trained = node.declaration.parameters if train.lora is None else adapters_of(node, train.lora)
        for parameter in trained:
            own_elements = _gradient_elements(node, parameter, train, layout, data_place)
            cut = [dim for dim in parameter.dims if _over_tp(dim)]
            shared = next((dim for dim in cut if dim.axis == "kv_heads" and layout.tp > dim.units), None)
            if not cut and not parameter.buffer:
                whole += own_elements
            elif shared is not None:
                repeats = layout.tp // shared.units
                repeated[repeats] = repeated.get(repeats, 0) + own_elements
    size = train.gradient_bytes
    yield Collective("tp", "all-reduce", "gradients of replicated tensors", 1, whole * size, layout.tp)
    for repeats, number in repeated.items():
        yield Collective(
            "tp", "all-reduce", "gradients of repeated KV heads", 1, number * size, repeats, neighbours=True
        )


def _over_tp(dim: Dim) -> bool:
    return MESH_AXIS.get(dim.axis) == "tp"


def _gradient_elements(
    node: LayerNode, parameter: Parameter, train: TrainSetting, layout: Layout, data_place: tuple[int, int]
) -> int:
    """Elements of a tensor's gradient on one of the ranks that share it, along its first dim (FSDP2)."""
    first, *rest = shard_shape(node, parameter, layout)
    if train.zero_stage < 2:
        return first * prod(rest)
    dp, ep = data_place
    is_expert = parameter.is_per_expert
    share = ceil_div(first, layout.expert_copies if is_expert else layout.dense_copies)
    start = share * layout.cp * (dp if is_expert else dp * layout.ep + ep)
    return max(0, min(share, first - start)) * prod(rest)


def _balance(graph: LayerGraph, layout: Layout, load: StepTokens, stage: PipelineStage) -> Iterator[Collective]:
    every = dense_axis(layout)
    loads: dict[Axis, list[int]] = {every: [], "ep": []}
    scored = []
    for routed in _mixtures(graph, stage):
        if routed.loads_counted_over in ("batch", "ep_group"):
            loads["ep" if routed.loads_counted_over == "ep_group" else every].append(routed.num_experts)
        if routed.loads_counted_over == "sequence" and layout.cp > 1:
            payload = load.tokens // (2 * load.piece) * routed.num_experts * BALANCE_BYTES
            yield Collective("cp", "all-reduce", BALANCE[0], load.micro_batches, payload, layout.cp)
        if routed.experts_choose:
            scored.append(routed.num_experts)
    times = load.micro_batches
    for axis, experts in loads.items():
        if (ranks := ranks_of(layout, axis)) > 1:
            payload = times * sum(experts) * BALANCE_BYTES
            yield Collective(axis, "all-reduce", BALANCE[0], times * len(experts), payload, ranks)
    if (data := ranks_of(layout, every)) > 1:
        payload = data * load.tokens * sum(scored) * BALANCE_BYTES
        yield Collective(every, "all-gather", BALANCE[1], times * len(scored), payload, data)


def dense_axis(layout: Layout) -> Axis:
    """The ranks that share all weights but experts."""
    return "dp_ep" if layout.cp == 1 else "dp_ep_cp"


def data_collectives(
    graph: LayerGraph, train: TrainSetting, layout: Layout, load: StepTokens, stage: PipelineStage
) -> Iterator[Collective]:
    """Gradients and weights that data-parallel ranks send in one optimizer step, by ZeRO stage."""
    trained, trained_experts = params_on_device(graph, layout, stage, train.trainable, train.lora)
    trained_ends = ends_on_device(graph, layout, stage, train.trainable, train.lora)
    moving = (trained - trained_ends, trained_ends, trained_experts)
    everywhere = dense_axis(layout)
    shares: tuple[tuple[Axis, str, int], ...] = (
        (everywhere, "dense weights of blocks", 2),
        (everywhere, "weights outside blocks", 1),
        ("dp" if layout.cp == 1 else "dp_cp", "experts", 2),
    )
    for (axis, what, gathers), own, every in zip(
        shares, moving, gathered_parts(graph, train, layout, stage), strict=True
    ):
        if (ranks := ranks_of(layout, axis)) > 1:
            for operation, tensor, calls, size in _synchronised(train, load.micro_batches, what, gathers):
                whole = operation == "all-gather" and train.zero_stage == 3
                yield Collective(axis, operation, tensor, calls, calls * (every if whole else own * size), ranks)


def _synchronised(
    train: TrainSetting, micro_batches: int, what: str, gathers: int
) -> Iterator[tuple[str, str, int, int]]:
    """(operation, tensor, calls, bytes per parameter) of weights gathered `gathers` times per micro-batch by ZeRO 3."""
    zero = train.zero_stage
    times = micro_batches if zero >= 2 else 1
    yield "all-reduce" if zero == 0 else "reduce-scatter", f"gradients of {what}", times, train.gradient_bytes
    if zero:
        yield "all-gather", what, gathers * micro_batches if zero == 3 else 1, WEIGHT_BYTES
