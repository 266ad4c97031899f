"""What one process does with a model, and what ranks do with the same one: the same weights, tokens and prompts."""

import math
from typing import Any

import torch
from torch import Tensor

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.training import local_of
from l4spec.sharding.layout import Layout
from l4spec.spec.document import read_text
from l4spec.spec.parse import parse_spec
from tests.runtime.tiny import randomised, token_ids

UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp64": 2.0**-53}


def graph_from(text: str) -> LayerGraph:
    """The graph of a spec by its shipped name, or of YAML (what crosses to another process is text)."""
    return l4spec.compile(parse_spec(read_text(text, "drawn.yaml")) if "\n" in text else l4spec.load(text))


def bound_of(graph: LayerGraph, dtype: str) -> float:
    """Largest difference of two runs relative to the largest value: 2 sqrt(2) sqrt(K D) u, as in `oracles.py`.

    K is the longest sum and D the number of contractions that a logit passes through. Gradients pass through as many
    again, of which each adds to the relative error of all after it: callers take a multiple.
    """
    longest = max((max(p.shape) for _, p in graph.parameters()), default=1)
    deepest = 6 * graph.num_layers + 1
    return math.sqrt(8 * longest * deepest) * UNIT_ROUNDOFF[dtype]


NARROWER = 2.0**-29
"""An fp64 rounding error in terms of an fp32 one."""


def explained(graph: LayerGraph, noise: float, scale: float) -> float:
    """How far results of fp64 that are as large as `scale` may differ: what rounding explains in this very model.

    `bound_of` takes every layer for well-conditioned. A drawn model may magnify its rounding errors without limit
    (sharp softmaxes, norms of what cancels), and by how much is measured: `noise` is how far one process in fp32 is
    from the same one in fp64. fp64 errs by the same sums, each 2^-29 times as much, in another random order; the
    largest of many such errors lie within a few deviations of each other, for which a factor of 8 is allowed.
    """
    return 8 * NARROWER * noise + bound_of(graph, "fp64") * scale


def labelled(graph: LayerGraph, batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Random tokens, and random labels of which every seventh counts for nothing."""
    vocab = graph.model.text.head.vocab_size
    ids, labels = (token_ids(batch, tokens, vocab, seed) for seed in (1, 2))
    return ids, labels.where(torch.arange(tokens) % 7 != 3, -100)


def alone(text: str, dtype: str, batch: int, tokens: int) -> tuple[Tensor, float, dict[str, Tensor]]:
    """Logits, loss and gradients of one process."""
    graph = graph_from(text)
    model = randomised(graph, dtype=dtype).train()
    ids, labels = labelled(graph, batch, tokens)
    logits = model(ids)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.autograd.backward(loss)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), float(loss.detach()), grads


def on_rank(rank: int, text: str, dtype: str, layout: Layout, batch: int, tokens: int) -> dict[str, Any]:
    """The same on one rank: its rows of logits, its loss, its regions of gradients, and where those lie."""
    graph = graph_from(text)
    whole = randomised(graph, dtype=dtype)
    ids, labels = labelled(graph, batch, tokens)
    serving = distribute(whole, layout)
    with torch.no_grad():
        logits = serving(serving.own_rows(ids))
    model = distribute(whole, layout, train=True)
    loss = model.loss(model.own_rows(ids), model.own_rows(labels))
    torch.autograd.backward(loss)
    model.finish_backward()
    grads = {
        name: (model.local_region(name), local_of(p.grad)) for name, p in model.named_parameters() if p.grad is not None
    }
    return {"logits": logits, "loss": float(loss.detach()), "grads": grads, "place": model.mesh.place}


def relative(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """Largest difference relative to the largest value (of `scale`, by default of what is wanted)."""
    if not expected.numel():
        return 0.0
    largest = (expected if scale is None else scale).abs().max()
    return float((actual - expected).abs().max() / largest.clamp(min=1e-30))


def generated(rank: int, text: str, layout: Layout | None, prompts: list[list[int]]) -> list[list[list[int]]]:
    """What follows prompts of unequal length: greedily, drawn by a seed in small prefill chunks, and until a stop."""
    graph = graph_from(text)
    model: Model = randomised(graph, dtype="fp64")
    if layout is not None:
        model = distribute(model, layout)
    stops = list(range(0, graph.model.text.head.vocab_size, 3))
    return [
        model.generate(prompts, max_new_tokens=10),
        model.generate(prompts, max_new_tokens=6, prefill_chunk=7, temperature=0.8, top_k=20, seed=4),
        model.generate(prompts, max_new_tokens=20, stop_ids=stops),
    ]
