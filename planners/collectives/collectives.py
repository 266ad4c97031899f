"""The list of collectives of a layout's devices in a pass, call by call.

`collectives(graph, layout, run, stage)` gives it for one pipeline stage: the tensors that a forward pass (prefill or
decode) or a training step sends, with calls and payload. Everything else is a function of the list: the bytes that a
plan prints and their tiers of links (`communication`, `training_traffic`), seconds (`planners.timing`) and the counters
of measured ranks (`planners.module.runtime_collectives`), which add the calls that only our runtime makes.

A forward pass, Megatron's tensor parallelism (arXiv:1909.08053):

- tp: an all-reduce of the stream after every layer whose tensors tp cuts (attention, feed-forward, embedding), and an
  all-gather of the logits, padded to the widest rank's, where they are needed: in the head's number format, as engines
  do (vLLM's LogitsProcessor, SGLang), which convert to fp32 afterwards; our own runtime sends fp32 (`LOGIT_BYTES`).
- ep: for each routed layer an all-to-all of the stream to every chosen expert, and one back. Routing is taken as even.
- pp: the stream to the next stage; each rank of tp sends it whole.
- cp: what layers keep of earlier tokens, from rank to rank (`l4spec.sharding.sequence`): that of the busiest rank.

The **payload** is the buffer that a rank passes (of an all-gather: takes out). Left out: image tiles, and whole
numbers that travel beside tokens (chosen ids, how many rows go to each expert).
"""

from collections.abc import Iterator
from typing import NamedTuple

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerGroup, LayerNode
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import shard_size, stage_of
from l4spec.sharding.sequence import longest_run, runs_of, sent_tokens
from l4spec.sharding.token_split import is_cut
from planners.collectives.link_tiers import Axis, Pattern, between_hosts, span_of
from planners.counts.kv_cache import bytes_per_token
from planners.device.activations import ACTIVATION_BYTES

PATTERNS: dict[str, Pattern] = {"all-to-all": "peers", "send": "chain"}
"""Communication pattern of a collective; all others are rings."""
LOGIT_BYTES = 4
"""Bytes of a logit that our runtime sends, and of a loss."""
CUT_ROLES = ("attention", "ffn", "embedding")
"""Layers whose output tensor-parallel ranks add up."""


class Collective(NamedTuple):
    """`calls` calls of one collective over one axis, that together pass `payload` bytes.

    `group` are the layers that call it, None if it is the stage's or the optimizer's. `ranks` may be a part of the
    axis: neighbours that repeat a KV head.
    """

    axis: Axis
    operation: str
    tensor: str
    calls: int
    payload: int
    ranks: int
    group: LayerGroup | None = None
    neighbours: bool = False

    @property
    def ring_bytes(self) -> int:
        """Bytes that one rank sends, rounded down."""
        return ring_bytes(self.operation, self.payload, self.ranks)


class ForwardPass(NamedTuple):
    """A prefill or a decode step on one rank: its new tokens, the rows of logits needed, numbers of `item_bytes`.

    `context` is the length of each divided sequence (cp), whose payload is that of one sequence. `logit_bytes` is the
    size of a logit when ranks join theirs.
    """

    tokens: int = 1
    logit_rows: int = 1
    item_bytes: int = ACTIVATION_BYTES
    context: int = 0
    logit_bytes: int = ACTIVATION_BYTES


def ring_bytes(operation: str, payload: int, ranks: int) -> int:
    """Bytes that one of `ranks` ranks sends for a payload, rounded down.

    As a ring over p ranks an all-reduce of n bytes sends 2 n (p - 1) / p, a reduce-scatter, an all-gather or an
    all-to-all n (p - 1) / p, a send n.
    """
    return payload if operation == "send" else ring_factor(operation) * payload * (ranks - 1) // ranks


def ring_factor(operation: str) -> int:
    """Number of times a ring passes the buffer: an all-reduce is a reduce-scatter and an all-gather."""
    return 2 if operation == "all-reduce" else 1


def inter_host_bytes(layout: Layout, axis: Axis, operation: str, sent: int, host_size: int) -> int:
    """Of the bytes that a device sends along an axis those that go to other hosts, rounded to whole bytes."""
    return round(sent * between_hosts(layout, axis, PATTERNS.get(operation, "ring"), host_size))


def collectives(graph: LayerGraph, layout: Layout, run: ForwardPass, stage: int = 0) -> tuple[Collective, ...]:
    """Collectives of a device of a pipeline stage in one forward pass, in the order of layers.

    Training is `planners.collectives.training_traffic.training_collectives`, which starts from these.
    """
    return (*_of_layers(graph, layout, run, stage), *_of_the_stage(graph, layout, run, stage))


@kept_with(maxsize=1024)
def _groups_by_stage(graph: LayerGraph, pp: int, virtual_stages: int) -> tuple[tuple[LayerGroup, ...], ...]:
    """For each pipeline stage the groups of equal text layers, of the nodes that it runs."""
    stages: list[list[LayerGroup]] = [[] for _ in range(pp)]
    for group in graph.groups:
        if group.first.scope == "text":
            nodes: dict[int, list[LayerNode]] = {}
            for node in group.nodes:
                nodes.setdefault(stage_of(graph, node, pp, virtual_stages), []).append(node)
            for stage, here in nodes.items():
                stages[stage].append(LayerGroup(tuple(here)))
    return tuple(map(tuple, stages))


def groups_of_stage(graph: LayerGraph, layout: Layout, stage: int, virtual_stages: int = 1) -> tuple[LayerGroup, ...]:
    """The text layers of a stage, equal ones together."""
    return _groups_by_stage(graph, layout.pp, virtual_stages)[stage]


def adds_up(group: LayerGroup, layout: Layout) -> bool:
    """True if tensor-parallel ranks sum the outputs of such a layer, and the gradients of its input."""
    return layout.tp > 1 and group.first.role in CUT_ROLES and is_cut(group.first)


def _of_layers(graph: LayerGraph, layout: Layout, run: ForwardPass, stage: int) -> Iterator[Collective]:
    stream = run.tokens * graph.hidden_size * run.item_bytes
    for group in groups_of_stage(graph, layout, stage):
        count, routed = group.count, group.declaration.routed
        if adds_up(group, layout):
            yield Collective("tp", "all-reduce", "activations", count, count * stream, layout.tp, group)
        if layout.tp > 1 and group.first.role == "head":
            vocab = group.declaration.parameters[0].dims[0]
            logits = layout.tp * shard_size(vocab, layout) * run.logit_rows * run.logit_bytes
            yield Collective("tp", "all-gather", "logits", count, count * logits, layout.tp, group)
        if routed is not None and layout.ep > 1:
            sent = run.tokens * routed.num_per_token * routed.sent_width(graph.hidden_size) * run.item_bytes
            yield Collective("ep", "all-to-all", "routed tokens", 2 * count, 2 * count * sent, layout.ep, group)


def _of_the_stage(graph: LayerGraph, layout: Layout, run: ForwardPass, stage: int) -> Iterator[Collective]:
    if stage < layout.pp - 1:
        payload = run.tokens * graph.stream_width * run.item_bytes
        yield Collective("pp", "send", "activations", 1, payload, layout.pp)
    if layout.cp > 1 and run.context:
        for group, tokens, size in earlier_tokens(graph, layout, run):
            yield Collective("cp", "send", "earlier tokens", 1, group.count * tokens * size, layout.cp, group)


def earlier_tokens(graph: LayerGraph, layout: Layout, run: ForwardPass) -> Iterator[tuple[LayerGroup, int, int]]:
    """(layers, tokens, bytes per token of one of them) that the last rank but one sends of a sequence: the busiest."""
    runs = runs_of(graph, run.context, layout.cp)
    for group, tokens in sent_tokens(graph, runs):
        yield group, max(tokens), bytes_per_token(group, layout, run.item_bytes)


def busiest_rank_tokens(graph: LayerGraph, layout: Layout, context: int) -> int:
    """Tokens of a divided sequence that its busiest rank runs."""
    return longest_run(graph, context, layout.cp)


def ranks_of(layout: Layout, axis: Axis) -> int:
    """Ranks along an axis."""
    return span_of(layout, axis)[0]
