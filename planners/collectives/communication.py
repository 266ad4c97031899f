"""Communication of one device per token of a forward pass, as a plan prints it: rows of the list of collectives.

Two figures of every collective: the **payload**, bytes of the buffer that a rank passes (of an all-gather: takes
out), and the **ring** traffic, bytes that it sends when the collective runs as a ring. Of the stages of a pipeline each
row tells the one that sends most. Conventions: `planners.collectives.collectives`.
"""

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.units import ceil_div
from planners.collectives.collectives import (
    Collective,
    ForwardPass,
    busiest_rank_tokens,
    collectives,
    earlier_tokens,
    inter_host_bytes,
    ring_bytes,
)
from planners.collectives.link_tiers import Axis
from planners.device.activations import ACTIVATION_BYTES
from planners.plan_types import Communication

ONE_TOKEN = ForwardPass(tokens=1, logit_rows=1)


def communication(
    graph: LayerGraph, layout: Layout, host_size: int | None = None, context: int = 1
) -> tuple[Communication, ...]:
    """A row per mesh axis and collective of a forward pass; with the host's size also by tier of links.

    Traffic along cp is that of a prefill of `context` tokens; with 0 there is none, as in training, which sends other
    blocks (`planners.collectives.key_value_ring`).
    """
    return _rows(graph, layout, host_size, context if layout.cp > 1 else 1)


@kept_with(maxsize=1024)
def _rows(graph: LayerGraph, layout: Layout, host_size: int | None, context: int) -> tuple[Communication, ...]:
    width, rows = graph.hidden_size * ACTIVATION_BYTES, []
    if layout.tp > 1:
        stage, sent = _busiest(graph, layout, "tp", "all-reduce")
        outputs = "each layer's output" if stage else "each layer's output and the embedding"
        text = f"{sent // width} x 2 x {width:,} B x {layout.tp - 1}/{layout.tp} ({outputs})"
        rows.append(_row(layout, "tp", "all-reduce", sent, text, host_size))
        _, sent = _busiest(graph, layout, "tp", "all-gather")
        share, size = f"{layout.tp - 1}/{layout.tp}", ONE_TOKEN.logit_bytes
        text = f"{sent // size:,} logits x {size} B x {share} (of a prompt's last token, of each new one)"
        rows.append(_row(layout, "tp", "all-gather", sent, text, host_size))
    if layout.ep > 1:
        _, sent = _busiest(graph, layout, "ep", "all-to-all")
        text = f"{_copies(graph, sent)} x 2 (there and back) x {layout.ep - 1}/{layout.ep}"
        rows.append(_row(layout, "ep", "all-to-all", sent, text, host_size))
    if layout.pp > 1:
        width = graph.stream_width * ACTIVATION_BYTES
        rows.append(_row(layout, "pp", "send", width, f"{width:,} B to the next stage", host_size))
    if layout.cp > 1 and context:
        rows.append(_passed_on(graph, layout, host_size, context))
    return tuple(rows)


def _copies(graph: LayerGraph, sent: int) -> str:
    """Copies sent to experts and back, `sent` bytes both ways; their number and width if the width is unique."""
    experts = (group.declaration.routed for group in graph.groups if group.first.scope == "text")
    widths = {routed.sent_width(graph.hidden_size) * ACTIVATION_BYTES for routed in experts if routed is not None}
    if len(widths) > 1:
        return f"{sent // 2:,} B of routed copies"
    (width,) = widths
    return f"{sent // 2 // width} routed copies x {width:,} B"


def _busiest(graph: LayerGraph, layout: Layout, axis: Axis, operation: str) -> tuple[int, int]:
    """The stage that hands most to a collective for one token, the foremost among equals, and how many bytes."""
    sent = [
        sum(each.payload for each in _matching(collectives(graph, layout, ONE_TOKEN, stage), axis, operation))
        for stage in range(layout.pp)
    ]
    stage = max(range(layout.pp), key=lambda stage: (sent[stage], -stage))
    return stage, sent[stage]


def _matching(listed: tuple[Collective, ...], axis: Axis, operation: str) -> list[Collective]:
    return [each for each in listed if (each.axis, each.operation) == (axis, operation)]


def _passed_on(graph: LayerGraph, layout: Layout, host_size: int | None, context: int) -> Communication:
    """Traffic of the last rank but one, the busiest: everything that the last one sees of earlier tokens."""
    run = ForwardPass(context=context)
    sent = sum(each.payload for each in _matching(collectives(graph, layout, run), "cp", "send"))
    terms = dict[tuple[int, int], int]()
    for group, tokens, size in earlier_tokens(graph, layout, run):
        terms[tokens, size] = terms.get((tokens, size), 0) + group.count
    text = " + ".join(f"{count} x {tokens:,} tokens x {size:,} B" for (tokens, size), count in terms.items())
    most = busiest_rank_tokens(graph, layout, context)
    text = f"({text or '0'}) / {most:,} (keys and values, or latents, of earlier tokens; chunked layers none)"
    row = _row(layout, "cp", "send", ceil_div(sent, most), text, host_size)
    return row.model_copy(update={"bytes_per_sequence": sent})


def _row(
    layout: Layout, axis: Axis, collective: str, payload: int, arithmetic: str, host_size: int | None
) -> Communication:
    if axis == "dp_ep" or axis == "dp_cp" or axis == "dp_ep_cp":  # noqa: PLR1714 - narrows the type
        raise AssertionError("a forward pass gathers no weights")
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
