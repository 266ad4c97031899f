"""Payloads of collectives of one rank in a pass of our runtime: calls and bytes by axis and collective.

`planners.collectives.communication` and `planners.collectives.training_traffic` plan what costs time on links, of the
busiest device. A counter in a run sees more of any one rank: the logits that are joined, the ids and counts that travel
beside tokens, each rank's uneven share. T are the tokens that a rank runs, s = T x hidden_size numbers its stream. A
forward pass:

- tp: an all-reduce of s after attention and after each feed-forward layer, and after the embedding on the first
  stage; an all-gather of the logits, in fp32 and padded to the widest rank's, on the last.
- ep, for each mixture: an all-to-all of how many rows go to each expert (int32), and of the rows there and back. A rank
  sends back as many as came to it.
- pp: the stream to the next stage.
- cp: blocks of what layers keep per token (`l4spec.sharding.sequence`), and an all-reduce of the last token's logits.
- ep, dp, cp: with a capacity, an all-gather of how many tokens chose each expert (int64), so that all count alike.

Choosing the next token: an all-gather of ids (int64) over dp x ep, and a broadcast of them over pp. A training step is
`planners.collectives.training_traffic.stage_traffic` along tp, ep and pp, with what arrives from ep and those counts;
what FSDP2 gathers and scatters over dp and ep, padded where ranks share a tensor unevenly; the number of labels
(int64), beside it whether a rank has images where the model sees (int64), and the loss (fp32), which is sent to all;
and the gradients that the first and the last stage exchange of a tied table.

Payloads are as in `planners.collectives.communication`: bytes of the buffer that is handed in, of an all-gather what
comes out.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import RoutedExperts, Work
from l4spec.sharding.layout import Layout, MeshCoordinate, place_of
from l4spec.sharding.rules import region_of
from l4spec.sharding.sequence import passed_blocks, runs_of
from l4spec.units import ceil_div
from planners.collectives.collectives import LOGIT_BYTES, ForwardPass, collectives
from planners.collectives.step_tokens import StepTokens
from planners.collectives.training_traffic import BALANCE, stage_traffic
from planners.counts.kv_cache import bytes_per_token
from planners.device.activations import ACTIVATION_BYTES
from planners.device.stages import PipelineStage
from planners.device.training_state import TrainSetting
from planners.module.runtime_rank import Arrived, nodes_on_rank, nodes_with_ties

ID_BYTES, COUNT_BYTES, ROWS_BYTES = 8, 8, 4
GRADIENT_BYTES = 4
"""In which data-parallel ranks add up gradients; tensor-parallel ranks do so in the format of the weights."""
Key = tuple[str, str]
"""Axis of the mesh and collective. The ranks of dp and ep together are `dp_ep`, or the one of them that has ranks."""


@dataclass(frozen=True, slots=True)
class Handed:
    """All calls of one collective over one axis: how many, and their payload."""

    calls: int
    payload_bytes: int


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass as one rank runs it: `work` its own, `tokens` of each whole sequence, numbers of `item_bytes`.

    `arrived` are rows of routed experts, by default as many as are sent; `left` are rows that were sent, by default as
    many as tokens choose.
    """

    work: Work
    tokens: int
    item_bytes: int
    arrived: Arrived | None = None
    left: Arrived | None = None


@dataclass(frozen=True, slots=True)
class _Rank:
    graph: LayerGraph
    layout: Layout
    place: MeshCoordinate
    nodes: tuple[LayerNode, ...]

    @property
    def mixtures(self) -> list[tuple[str, RoutedExperts]]:
        return [(node.id, routed) for node in self.nodes if (routed := node.declaration.routed) is not None]

    @property
    def is_first(self) -> bool:
        return self.place.pp == 0

    @property
    def is_last(self) -> bool:
        return self.place.pp == self.layout.pp - 1


_Call = tuple[str, str, int, int]
"""Axis, collective, calls, payload of all of them."""


def forward_on_rank(
    graph: LayerGraph, layout: Layout, rank: int, forward: Pass, *, chooses: bool = False
) -> dict[Key, Handed]:
    """Payloads of a rank in a forward pass to the last token's logits; with `chooses`, of the choice of a token too."""
    own = _rank(graph, layout, rank)
    run = ForwardPass(forward.work.num_tokens, forward.work.num_logit_rows, forward.item_bytes, logit_bytes=LOGIT_BYTES)
    listed = collectives(graph, layout, run, own.place.pp)
    calls: list[_Call] = [(each.axis, each.operation, each.calls, each.payload) for each in listed]
    calls += [*_uneven_arrivals(own, forward), *_row_counts(own, 1), *_capacity(own, forward.work.num_sequences, 1)]
    if layout.cp > 1:
        calls += _along_cp(own, forward)
    if chooses:
        calls += _choice(own, forward.work.num_sequences)
    return _summed(layout, calls)


def training_on_rank(
    graph: LayerGraph, layout: Layout, rank: int, stage: PipelineStage, step: Pass, micro_batches: int
) -> dict[Key, Handed]:
    """Payloads of a rank of `stage` in a training step of our runtime, on text without images."""
    own, load = _rank(graph, layout, rank), StepTokens(step.work.num_tokens, micro_batches)
    train = TrainSetting(zero_stage=3, checkpointing="none", gradient_bytes=step.item_bytes)
    first = stage_traffic(graph, train, layout, load, stage, None).rows
    at_place = stage_traffic(graph, train, layout, load, stage, None, data_place=(own.place.dp, own.place.ep)).rows
    sizes = {(row.axis, row.what, row.ranks): row.payload_bytes for row in at_place}
    calls: list[_Call] = []
    for row in (row for row in first if row.axis not in ("dp", "dp_ep") or row.what in BALANCE):
        is_kept = row.what.startswith(("gradients of", "loss", *BALANCE))
        wider = 1 if is_kept else step.item_bytes // ACTIVATION_BYTES
        calls.append((row.axis, row.collective, row.calls, sizes.get((row.axis, row.what, row.ranks), 0) * wider))
    calls += _shared_by_data(own, step, micro_batches)
    calls += _uneven_routing(own, step)
    calls += _row_counts(own, micro_batches)
    calls += _capacity(own, step.work.num_sequences // micro_batches, micro_batches)
    calls += _telling_the_loss(own, step)
    return _summed(layout, calls)


def _shared_by_data(own: _Rank, step: Pass, micro_batches: int) -> Iterator[_Call]:
    """Payloads of FSDP2, block by block; experts apart if ep divides them; the remaining parameters with the model.

    Blocks are gathered for each forward and each backward pass, the rest once for both. Blocks of a vision tower that
    no image reaches are not gathered; parameters between them and the text are, and have no gradient.
    """
    groups: dict[tuple[str, str | int | None], list[tuple[int, bool]]] = {}
    layout = own.layout
    for node in nodes_with_ties(own.graph, layout, own.place):
        for parameter in node.declaration.parameters:
            is_apart = parameter.is_per_expert and layout.ep > 1
            ranks = layout.dp if is_apart else layout.dp * layout.ep
            if (
                parameter.buffer
                or parameter.tied_to
                or ranks == 1
                or (node.scope == "vision" and node.layer is not None)
            ):
                continue
            rows, *rest = map(len, region_of(node, parameter, layout, own.place))
            group = ("dp", node.id) if is_apart else ("dp_ep", node.layer)
            groups.setdefault(group, []).append((ceil_div(rows, ranks) * ranks * prod(rest), node.scope == "text"))
    for (axis, unit), sizes in groups.items():
        gathers = 1 if unit is None else 2
        whole, trained = sum(size for size, _ in sizes), sum(size for size, is_used in sizes if is_used)
        times = micro_batches * gathers
        yield axis, "all-gather", times, times * whole * step.item_bytes
        if trained:
            yield axis, "reduce-scatter", micro_batches, micro_batches * trained * GRADIENT_BYTES


def _rank(graph: LayerGraph, layout: Layout, rank: int) -> _Rank:
    place = place_of(layout, rank)
    nodes = tuple(node for node in nodes_on_rank(graph, layout, place) if node.scope == "text")
    return _Rank(graph, layout, place, nodes)


def _summed(layout: Layout, calls: list[_Call]) -> dict[Key, Handed]:
    numbers, sizes = Counter[Key](), Counter[Key]()
    for axis, collective, count, payload in calls:
        key = (layout.data_axis if axis == "dp_ep" else axis, collective)
        if count or payload:
            numbers[key] += count
            sizes[key] += payload
    return {key: Handed(numbers[key], sizes[key]) for key in numbers}


def _uneven_arrivals(own: _Rank, run: Pass) -> Iterator[_Call]:
    """Difference between the rows that a rank sends back, those that came to its experts, and those that it sent."""
    if own.layout.ep == 1 or run.arrived is None:
        return
    for node_id, routed in own.mixtures:
        more = run.arrived[node_id] - run.work.num_tokens * routed.num_per_token
        yield "ep", "all-to-all", 0, more * routed.sent_width(own.graph.hidden_size) * run.item_bytes


def _row_counts(own: _Rank, passes: int) -> Iterator[_Call]:
    if own.layout.ep > 1:
        for _, routed in own.mixtures:
            yield "ep", "all-to-all", passes, passes * routed.num_experts * ROWS_BYTES


def _uneven_routing(own: _Rank, step: Pass) -> Iterator[_Call]:
    """Difference from equal loads of all experts in the rows that a rank sends, after its experts and before them."""
    if own.layout.ep == 1 or step.arrived is None:
        return
    for node_id, routed in own.mixtures:
        width = routed.sent_width(own.graph.hidden_size) * step.item_bytes
        even = round(step.work.num_tokens * routed.trained_per_token)
        left = even if step.left is None else step.left[node_id]
        yield "ep", "all-to-all", 0, 2 * (step.arrived[node_id] - even + left - even) * width


def _capacity(own: _Rank, sequences: int, passes: int) -> Iterator[_Call]:
    data, cp = own.layout.dp * own.layout.ep, own.layout.cp
    for _, routed in own.mixtures:
        if routed.capacity_factor is None:
            continue
        size = passes * routed.num_experts * COUNT_BYTES
        if cp > 1:
            size *= cp * sequences
            yield "cp", "all-gather", passes, size
        if data > 1:
            yield "dp_ep", "all-gather", passes, data * size


def _along_cp(own: _Rank, run: Pass) -> Iterator[_Call]:
    runs = runs_of(own.graph, run.tokens, own.layout.cp)
    for group, blocks in passed_blocks(own.graph, runs, own.place.cp):
        each = bytes_per_token(group, own.layout, run.item_bytes) * run.work.num_sequences
        yield "cp", "send", group.count * len(blocks), group.count * sum(blocks) * each
    vocab = own.graph.model.text.head.vocab_size
    yield "cp", "all-reduce", 1, run.work.num_logit_rows * vocab * LOGIT_BYTES


def _choice(own: _Rank, sequences: int) -> Iterator[_Call]:
    data = own.layout.dp * own.layout.ep
    ids = data * sequences * ID_BYTES
    if data > 1 and own.is_last:
        yield "dp_ep", "all-gather", 1, ids
    if own.layout.pp > 1:
        yield "pp", "broadcast", 1, ids


def _telling_the_loss(own: _Rank, step: Pass) -> Iterator[_Call]:
    if own.layout.dp * own.layout.ep > 1:
        counts = 2 if own.graph.model.vision is not None else 1
        yield "dp_ep", "all-reduce", 2, counts * COUNT_BYTES + LOGIT_BYTES
    if own.layout.pp == 1:
        return
    yield "pp", "broadcast", 1, LOGIT_BYTES
    if own.graph.model.text.head.tied and (own.is_first or own.is_last):
        yield "pp", "send", 1, _table_bytes(own, step)


def _table_bytes(own: _Rank, step: Pass) -> int:
    """Bytes of a tied table on a rank, after dp x ep ranks divide its rows."""
    node = next(node for node in own.graph.nodes if node.role == "embedding")
    rows, width = map(len, region_of(node, node.declaration.parameters[0], own.layout, own.place))
    data = own.layout.dp * own.layout.ep
    index = own.place.dp * own.layout.ep + own.place.ep
    share = ceil_div(rows, data)
    return max(0, min(share, rows - index * share)) * width * step.item_bytes
