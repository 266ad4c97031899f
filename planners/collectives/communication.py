"""What one device sends: per token of a forward pass, axis by axis, and where the links to other hosts begin.

Two figures of every collective: the **payload**, bytes of the buffer that a rank hands in (of an all-gather: takes
out), and the **ring** traffic, bytes that it sends when the collective runs as a ring over p ranks: of n bytes an
all-reduce sends 2 n (p - 1) / p, a reduce-scatter, an all-gather or an all-to-all n (p - 1) / p, a send n.
Activations are bf16. Megatron's tensor parallelism (arXiv:1909.08053): one all-reduce behind attention and one behind
each feed-forward layer; the ranks' logits are joined in fp32, where they are wanted: of each generated token, and of
a prompt's last one. Context parallelism passes what global layers keep of earlier tokens from rank to rank
(`l4spec.sharding.sequence`). Training adds the backward pass, recomputation and data parallelism:
`planners.collectives.training_traffic`.

Left out: image tiles, and whole numbers that travel beside tokens (chosen ids, how many rows go to each expert).
"""

from collections import Counter

from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import shard_size, stage_of
from l4spec.sharding.sequence import longest_run, runs_of, sent_tokens
from planners.collectives.link_tiers import Axis, Pattern, between_hosts
from planners.counts.kv_cache import bytes_per_token
from planners.device.activations import ACTIVATION_BYTES
from planners.plan_types import Communication

PATTERNS: dict[str, Pattern] = {"all-to-all": "peers", "send": "chain"}
"""Who sends to whom in a collective; all others are rings."""
LOGIT_BYTES = 4


def ring_bytes(collective: str, payload: int, ranks: int) -> int:
    """Bytes that one of `ranks` ranks sends for a payload, rounded down."""
    if collective == "send":
        return payload
    return (2 if collective == "all-reduce" else 1) * payload * (ranks - 1) // ranks


def inter_host_bytes(layout: Layout, axis: Axis, collective: str, sent: int, host_size: int) -> int:
    """Of the bytes that a device sends along an axis those that go to other hosts, rounded to whole bytes."""
    return round(sent * between_hosts(layout, axis, PATTERNS.get(collective, "ring"), host_size))


def communication(
    graph: LayerGraph, layout: Layout, host_size: int | None = None, context: int = 1
) -> tuple[Communication, ...]:
    """A row per mesh axis and collective of a forward pass; with the host's size also by tier of links.

    Of the stages of a pipeline each row tells the one that sends most. What travels along cp is that of the prefill of
    `context` tokens.
    """
    width = graph.model.text.stack.width.hidden_size * ACTIVATION_BYTES
    rows = []
    if layout.tp > 1:
        stage, reductions = _busiest(graph, layout, ("attention", "ffn", "embedding"))
        outputs = "each layer's output" if stage else "each layer's output and the embedding"
        text = f"{reductions} x 2 x {width:,} B x {layout.tp - 1}/{layout.tp} ({outputs})"
        rows.append(_row(layout, "tp", "all-reduce", reductions * width, text, host_size))
        rows.append(_joined_logits(graph, layout, host_size))
    if layout.ep > 1:
        _, routed = _busiest(graph, layout, ("ffn",), mixtures=True)
        text = f"{routed} routed copies x 2 (there and back) x {width:,} B x {layout.ep - 1}/{layout.ep}"
        rows.append(_row(layout, "ep", "all-to-all", routed * 2 * width, text, host_size))
    if layout.pp > 1:
        rows.append(_row(layout, "pp", "send", width, f"{width:,} B to the next stage", host_size))
    if layout.cp > 1:
        rows.append(_passed_on(graph, layout, host_size, context))
    return tuple(rows)


def _busiest(graph: LayerGraph, layout: Layout, roles: tuple[str, ...], *, mixtures: bool = False) -> tuple[int, int]:
    """The stage with the most layers of these roles, the foremost among equals, and how many; or chosen experts."""
    counts = Counter[int]()
    for node in graph.nodes:
        if node.scope == "text" and node.role in roles:
            routed = node.declaration.routed
            chosen = routed.num_per_token if routed else 0
            counts[stage_of(graph, node, layout.pp)] += chosen if mixtures else 1
    stage = min(counts, key=lambda stage: (-counts[stage], stage))
    return stage, counts[stage]


def _joined_logits(graph: LayerGraph, layout: Layout, host_size: int | None) -> Communication:
    """Every rank takes in the others' logits, as many of each as the first one has."""
    head = next(node for node in graph.nodes if node.role == "head")
    number = layout.tp * shard_size(head.declaration.parameters[0].dims[0], layout)
    text = (
        f"{number:,} logits x {LOGIT_BYTES} B x {layout.tp - 1}/{layout.tp} (of a prompt's last token, of each new one)"
    )
    return _row(layout, "tp", "all-gather", number * LOGIT_BYTES, text, host_size)


def _passed_on(graph: LayerGraph, layout: Layout, host_size: int | None, context: int) -> Communication:
    """What the last rank but one sends, the busiest: everything that the last one sees of earlier tokens."""
    runs, sent, terms = runs_of(graph, context, layout.cp), 0, dict[tuple[int, int], int]()
    for group, tokens in sent_tokens(graph, runs):
        each = (max(tokens), bytes_per_token(group, layout, ACTIVATION_BYTES))
        terms[each] = terms.get(each, 0) + group.count
        sent += group.count * each[0] * each[1]
    text = " + ".join(f"{count} x {tokens:,} tokens x {size:,} B" for (tokens, size), count in terms.items())
    run = longest_run(graph, context, layout.cp)
    text = f"({text or '0'}) / {run:,} (keys and values, or latents, of earlier tokens; chunked layers none)"
    return _row(layout, "cp", "send", -(-sent // run), text, host_size).model_copy(update={"bytes_per_sequence": sent})


def _row(
    layout: Layout, axis: Axis, collective: str, payload: int, arithmetic: str, host_size: int | None
) -> Communication:
    assert axis != "dp_ep", "a forward pass gathers no weights"
    sent = ring_bytes(collective, payload, getattr(layout, axis))
    outside = None if host_size is None else inter_host_bytes(layout, axis, collective, sent, host_size)
    return Communication(
        axis=axis,
        collective=collective,
        bytes_per_token=sent,
        payload_bytes_per_token=payload,
        intra_host_bytes_per_token=None if outside is None else sent - outside,
        inter_host_bytes_per_token=outside,
        arithmetic=arithmetic,
    )
