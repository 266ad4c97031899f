"""Construction of the torch module that executes a layer graph."""

import importlib
from typing import Any

import torch
from torch import nn

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.huggingface.opening import Model as Named
from l4spec.huggingface.opening import graph_of
from l4spec.layers import KINDS
from l4spec.layers.common.modules import LayerModule
from l4spec.progress import Progress
from l4spec.quantization.scheme import Quantization, scheme_named
from l4spec.runtime.initialize import initialize, initialize_layer
from l4spec.runtime.model import Model
from l4spec.runtime.quantize.apply import DTYPES as PLAIN_DTYPES
from l4spec.runtime.quantize.apply import number_format, quantize_layer, require_packable

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
"""Torch's number formats by the names that specs and options use."""


def build(
    model: Named,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    *,
    seed: int | None = 0,
    quantization: str | None = None,
) -> Model:
    """Build the module of a graph, of a spec, or of a spec's name or path.

    Its tensors are named `{node.id}.{parameter.name}` and shaped as declared.

    `dtype` is by default that of the published weights. Weights are random, the same for the same seed; `seed=None`
    leaves them uninitialized for a checkpoint to be loaded. On `meta` nothing is allocated. With a `quantization`
    scheme each layer is packed as soon as it is filled, as `l4spec.quantize` does; the scheme then determines the
    dtype. Raises TypeError for a layer kind whose module's tensors differ from the kind's declaration, KeyError for an
    unknown dtype, and UserError for a scheme that cannot be run.
    """
    graph = graph_of(model)
    if quantization is not None:
        if dtype is not None:
            raise UserError(f"{quantization} says the number formats of the weights", hint="leave out dtype")
        return build_quantized(graph, scheme_named(quantization), device, seed=seed)
    target = torch.device(device)
    chosen = dtype if isinstance(dtype, torch.dtype) else DTYPES[dtype or graph.model.text.dtype]
    with torch.device("meta"):
        built = Model(graph, {node.id: module_of(node) for node in graph.nodes})
    built.to(dtype=chosen)
    check(built, graph)
    if target.type != "meta":
        built.to_empty(device=target)
        if seed is not None:
            initialize(built, graph, seed)
    return built.eval()


def build_quantized(
    graph: LayerGraph,
    table: Quantization,
    device: torch.device | str = "cpu",
    *,
    seed: int | None = 0,
    progress: Progress | None = None,
) -> Model:
    """The model of `quantize(build(graph, device, seed=seed), table)`, built directly in the scheme's number format.

    `seed=None` leaves the packed tensors uninitialized, for a state to be loaded. Raises UserError as `quantize` does.
    """
    dtype = PLAIN_DTYPES[number_format(graph, table)]
    model = build(graph, "meta", dtype)
    require_packable(model, table)
    is_filled = seed is not None and torch.device(device).type != "meta"
    for done, node in enumerate(graph.nodes, start=1):
        layer = model.get_submodule(node.id)
        if is_filled:
            assert seed is not None
            layer.to_empty(device=device)
            initialize_layer(layer, node, seed)
        quantize_layer(graph, node, layer, table, dtype)
        if progress:
            progress(done, len(graph.nodes))
    if not is_filled:
        model.to_empty(device=device)
    model.requires_grad_(False)
    model.quantization = table
    return model


def module_of(node: LayerNode) -> LayerModule:
    """The whole layer of a node."""
    return make_module(KINDS[node.kind].module, node.id, node.spec, node.width)


def make_module(place: str, node_id: str, *arguments: Any) -> LayerModule:
    """Construct `module:Class` with the arguments, for the node of this id; TypeError if it is not a LayerModule."""
    module_name, _, class_name = place.partition(":")
    module = getattr(importlib.import_module(module_name), class_name)(*arguments)
    if not isinstance(module, LayerModule):
        raise TypeError(f"{place} must be a LayerModule")
    module.node_id = node_id
    return module


def check(model: nn.Module, graph: LayerGraph) -> None:
    """Compare the model's tensors with the declared ones; raises TypeError naming every difference."""
    declared = {f"{node.id}.{p.name}": (p.shape, p.buffer) for node, p in graph.parameters() if p.tied_to is None}
    parameters = dict(model.named_parameters())
    built = {name: (tuple(t.shape), name not in parameters) for name, t in model.state_dict(keep_vars=True).items()}
    problems = [f"{name}: declared {declared[name]}, built nothing" for name in declared.keys() - built.keys()]
    problems += [f"{name}: built {built[name]}, declared nothing" for name in built.keys() - declared.keys()]
    problems += [
        f"{name}: declared {declared[name]}, built {built[name]}"
        for name in declared.keys() & built.keys()
        if declared[name] != built[name]
    ]
    if problems:
        raise TypeError("modules must hold what their kinds declare, (shape, is a buffer):\n" + "\n".join(problems))
