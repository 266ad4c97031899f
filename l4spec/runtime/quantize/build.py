"""Building a quantized model layer by layer: memory never holds more than what is packed and one layer that is not."""

import torch

from l4spec.graph.layer_graph import LayerGraph
from l4spec.quantization.scheme import Quantization
from l4spec.runtime.build import build
from l4spec.runtime.initialize import initialize_layer
from l4spec.runtime.model import Model
from l4spec.runtime.progress import Report
from l4spec.runtime.quantize.apply import DTYPES, number_format, quantize_layer, require_packable


def build_quantized(
    graph: LayerGraph,
    table: Quantization,
    device: torch.device | str = "cpu",
    *,
    seed: int | None = 0,
    report: Report | None = None,
) -> Model:
    """What `quantize(build(graph, device, seed=seed), table)` gives, built in the scheme's number format.

    `seed=None` leaves the packed tensors unset, for a state to fill. Raises UserError as `quantize` does.
    """
    dtype = DTYPES[number_format(graph, table)]
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
        if report:
            report(done, len(graph.nodes))
    if not is_filled:
        model.to_empty(device=device)
    model.requires_grad_(False)
    model.quantization = table
    return model
