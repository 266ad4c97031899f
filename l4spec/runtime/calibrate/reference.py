"""Fixed overhead of a layer and of a forward pass, measured on one-layer models with tiny widths.

They are too narrow to be anybody's model. Each of their operations is measured by itself; the rest of the time is that
of Python, modules and views.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.modules import Context, LayerModule
from l4spec.runtime.build import build
from l4spec.runtime.calibrate.buffers import Buffers
from l4spec.runtime.calibrate.tables import median_of
from l4spec.runtime.calibrate.timing import Case
from l4spec.runtime.model import Model
from l4spec.spec.model import ModelSpec
from l4spec.spec.resolve import resolve

HIDDEN = 64
CONTEXT = 32
"""Tokens that the step's own one is the last of."""
_ROPE = {"kind": "rope", "theta": 10000.0, "layout": "interleaved"}
_MASK = {"kind": "causal"}
PARTS: dict[str, dict[str, Any]] = {
    "gqa": {"kind": "gqa", "num_heads": 2, "num_kv_heads": 2, "head_dim": 32, "mask": _MASK, "position": _ROPE},
    "mla": {
        "kind": "mla",
        "num_heads": 2,
        "q_lora_rank": None,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "norm_eps": 1e-6,
        "mask": _MASK,
        "position": _ROPE,
    },
    "swiglu": {"kind": "swiglu", "intermediate_size": HIDDEN},
    "mlp": {"kind": "mlp", "intermediate_size": HIDDEN, "activation": "gelu"},
    "moe": {
        "kind": "moe",
        "num_experts": 4,
        "num_experts_per_token": 1,
        "intermediate_size": HIDDEN,
        "router": {"score": "sigmoid", "scales": "output"},
    },
}
"""One of each kind whose modules have code of their own; others are taken for their nearest relative."""


Pair = tuple[Case, Case]
"""Again and again, and after weights have streamed through the caches."""


@dataclass(slots=True)
class Reference:
    """One layer of a kind, in a pass of one token after `cached` others.

    `nodes` are its layers alone by node id, `hollow` is a pass whose layers do nothing, `turning` an attention layer
    that has to make its rotation table.
    """

    kind: str
    graph: LayerGraph
    nodes: dict[str, Pair]
    hollow: Pair
    turning: Pair | None = None
    cached: int = CONTEXT - 1

    @property
    def attention(self) -> str | None:
        """Id of the layer that rotates heads."""
        return next((node.id for node in self.graph.nodes if node.role == "attention"), None)

    def cases(self) -> Iterator[Case]:
        """Everything to time."""
        for pair in (*self.nodes.values(), self.hollow, *([self.turning] if self.turning else [])):
            yield from pair


def seconds_of(pair: Pair) -> tuple[float, float]:
    """Median seconds, hot and cold."""
    return median_of(pair[0]), median_of(pair[1])


def references(buffers: Buffers) -> list[Reference]:
    """Every kind."""
    return [_reference(kind, _graph(kind, part), buffers) for kind, part in PARTS.items()]


def _graph(kind: str, part: dict[str, Any]) -> LayerGraph:
    text = {
        "hidden_size": HIDDEN,
        "vocab_size": HIDDEN,
        "max_seq_len": CONTEXT,
        "norm": {"kind": "rmsnorm", "eps": 1e-5},
        "parts": {"part": part},
        "layers": [{"attention" if kind in ("gqa", "mla") else "ffn": "part"}],
    }
    return build_graph(resolve(ModelSpec.model_validate({"l4spec": 1, "name": kind, "text": text})))


def _reference(kind: str, graph: LayerGraph, buffers: Buffers) -> Reference:
    model = build(graph, "cpu", buffers.dtype).requires_grad_(requires_grad=False)
    ids = torch.zeros(1, CONTEXT, dtype=torch.long)
    cache = model.new_cache(1, CONTEXT)
    model(ids[:, :-1], cache=cache, logits="last")

    def step() -> None:
        cache.length = CONTEXT - 1
        model(ids[:, -1:], cache=cache, logits="last")

    def both(call: Callable[[], object]) -> Pair:
        return Case(call), Case(call, buffers.after_weights())

    calls, results = _calls(model, step)
    nodes = {name: both(call) for name, call in calls.items()}
    reference = Reference(kind, graph, nodes, both(_hollow(graph, buffers, results, ids)))
    if reference.attention is not None:
        reference.turning = both(_turning(calls[reference.attention]))
    return reference


def _hollow(graph: LayerGraph, buffers: Buffers, results: dict[str, Tensor], ids: Tensor) -> Callable[[], object]:
    """A pass of another such model whose layers return their earlier outputs."""
    model = build(graph, "cpu", buffers.dtype).requires_grad_(requires_grad=False)
    for module in model.modules():
        if isinstance(module, LayerModule):
            module.forward = partial(_given, results[module.node_id])
    cache = model.new_cache(1, CONTEXT)

    def step() -> None:
        cache.length = CONTEXT - 1
        model(ids[:, -1:], cache=cache, logits="last")

    return step


def _given(result: Tensor, *inputs: Tensor, context: Context) -> Tensor:
    return result


def _turning(call: "partial[Tensor]") -> Callable[[], object]:
    memo = call.keywords["context"].memo

    def run() -> None:
        memo.clear()
        call()

    return run


def _calls(model: Model, step: Callable[[], None]) -> tuple[dict[str, "partial[Tensor]"], dict[str, Tensor]]:
    """The call of each layer's module in a step, by node id, with its inputs and its output."""
    calls: dict[str, partial[Tensor]] = {}
    results: dict[str, Tensor] = {}

    def see(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        assert isinstance(module, LayerModule)
        calls[module.node_id], results[module.node_id] = partial(module, *args, **kwargs), output

    layers = [module for module in model.modules() if isinstance(module, LayerModule)]
    handles = [layer.register_forward_hook(see, with_kwargs=True) for layer in layers]
    step()
    for handle in handles:
        handle.remove()
    return calls, results
