"""Context parallelism: division of a sequence's tokens among ranks, and their traffic in a prefill.

In a prefill:

Each rank runs one run of neighbouring tokens, cut only between chunks of the chunked layers, so that these layers need
nothing from other ranks. Otherwise a layer's cached rows are sent to the next rank, and on to those after it: all
earlier tokens for a causal mask (ring attention, arXiv:2310.01889), the last window - 1 for a sliding one.

In training: each rank runs two of 2 x cp equal pieces of a sequence, the i-th and the i-th from the end, as Megatron
and torchtitan cut them (arXiv:2407.21783, section 3.3.2), so that all have the same pairs of a causal mask.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import lcm

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerGroup, LayerNode
from l4spec.layers import KINDS
from l4spec.layers.declaration import Bound
from l4spec.sharding.layout import Layout
from l4spec.units import ceil_div


@kept_with(maxsize=64)
def chunk_of(graph: LayerGraph) -> int:
    """Tokens that stay together on a rank: whole chunks of every chunked layer; 1 without any."""
    laws = (_reach_of(group.first) for group in graph.groups if _attends(group.first))
    return lcm(*(law.size for law in laws if law is not None and law.kind == "chunk" and law.size is not None))


def runs_of(graph: LayerGraph, num_tokens: int, cp: int) -> tuple[range, ...]:
    """The tokens of a sequence that each rank runs: equal numbers of chunks, the first ranks one more where uneven.

    Empty runs, where there are fewer chunks than ranks, are what `short_reason` refuses.
    """
    chunk = chunk_of(graph)
    each, more = divmod(ceil_div(num_tokens, chunk), cp)
    bounds = [min((rank * each + min(rank, more)) * chunk, num_tokens) for rank in range(cp + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(bounds))


def longest_run(graph: LayerGraph, num_tokens: int, cp: int) -> int:
    """Tokens of a sequence that the busiest rank runs, the first one; all where it cannot be divided."""
    chunk = chunk_of(graph)
    return min(ceil_div(num_tokens, chunk * cp) * chunk, num_tokens)


def undivided_reason(graph: LayerGraph, layout: Layout, *, trains: bool = False) -> str | None:
    """Reason why no sequence of this model can be divided as the layout requires, or None."""
    if layout.cp == 1:
        return None
    if layout.pp > 1 and not trains:
        return f"cp={layout.cp} with pp={layout.pp}: the stages of a pipeline run whole sequences"
    for node in (group.first for group in graph.groups if _attends(group.first)):
        if not KINDS[node.kind].divides_sequence:
            known = " or ".join(name for name, kind in KINDS.items() if kind.divides_sequence)
            return f"cp={layout.cp} is for attention by {known}, and {node.id} is {node.kind}"
        if node.declaration.mixing is not None and node.declaration.mixing.reach is None:
            return f"cp={layout.cp} divides what sees only earlier tokens, and {node.id} sees every token"
    return None


def piece_of(num_tokens: int, cp: int) -> int:
    """Tokens of a piece of a sequence on which `cp` ranks train: all of them on one rank, else two pieces to a rank."""
    return num_tokens if cp == 1 else num_tokens // (2 * cp)


def unbalanced_reason(cp: int, num_tokens: int) -> str | None:
    """Reason why `cp` ranks cannot train on equal parts of a sequence of this many tokens, or None."""
    if cp == 1 or num_tokens % (2 * cp) == 0:
        return None
    whole = max(2 * cp, num_tokens - num_tokens % (2 * cp))
    return (
        f"cp={cp} trains on {2 * cp} equal pieces of a sequence, two to a rank, and {num_tokens:,} tokens are no "
        f"multiple of {2 * cp}: {whole:,} are one"
    )


def short_reason(graph: LayerGraph, cp: int, num_tokens: int) -> str | None:
    """Reason why a sequence of this many tokens cannot be divided among `cp` ranks, or None."""
    chunk = chunk_of(graph)
    if ceil_div(num_tokens, chunk) >= cp:
        return None
    if chunk == 1:
        return f"cp={cp} leaves ranks without tokens: a sequence has {num_tokens:,}"
    least = (cp - 1) * chunk + 1
    return (
        f"cp={cp} cuts sequences between chunks of {chunk:,} tokens, one or more to a rank: "
        f"they need {least:,} tokens or more, found {num_tokens:,}"
    )


def sent_tokens(graph: LayerGraph, runs: tuple[range, ...]) -> Iterator[tuple[LayerGroup, tuple[int, ...]]]:
    """Layers of which something travels, and the tokens of one sequence that each rank sends on in one of them.

    Rows of earlier ranks come through the previous rank, which therefore passes on as many.
    """
    for group in graph.groups:
        if passes_on(group.first):
            reach = _reach_of(group.first)
            assert reach is not None, "what sees later tokens is never divided"
            yield group, tuple(reach.seen_before(run.start) for run in (*runs[1:], range(0)))


def passed_blocks(
    graph: LayerGraph, runs: tuple[range, ...], index: int
) -> Iterator[tuple[LayerGroup, tuple[int, ...]]]:
    """The same layers, and the tokens of each block that one of them on the rank `index` sends on, its own first."""
    for group, tokens in sent_tokens(graph, runs):
        left, blocks = tokens[index], []
        for run in reversed(runs[: index + 1]):
            if left:
                blocks.append(min(len(run), left))
                left -= blocks[-1]
        yield group, tuple(blocks)


def passes_on(node: LayerNode) -> bool:
    """True if a layer attends to tokens of other ranks."""
    reach = _reach_of(node)
    return _attends(node) and reach is not None and reach.kind != "chunk"


def _attends(node: LayerNode) -> bool:
    return node.scope == "text" and node.role == "attention"


def _reach_of(node: LayerNode) -> Bound | None:
    return None if node.declaration.mixing is None else node.declaration.mixing.reach
