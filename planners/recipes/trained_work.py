"""FLOPs of a training step whose phase freezes tensors or shows images: which passes each layer still needs.

A layer runs forward once. Its weights' gradients are one more pass where they are trained, its inputs' gradients
another where the layer or one before it is trained. Without frozen tensors and images that is three forward passes.
"""

from collections.abc import Set

from l4spec.graph.build import MTP_SHARED, mtp_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.graph.trainable import trained_names
from l4spec.graph.with_modules import module_place, with_modules
from l4spec.layers.declaration import Matmul, Operation, Work
from l4spec.spec.recipe import Phase
from l4spec.spec.recipe.data import DataSpec, DescribedSource
from l4spec.spec.recipe.pictures import NUM_MARKS, mean_caption_bytes
from planners.counts.cost_sheet import PassTokens, row_of_group
from planners.counts.mtp import count_mtp


def image_share(data: DataSpec, phase: Phase, tokens_per_tile: int) -> float:
    """Share of a phase's tokens that are patches of images; of made-up pictures by the mean length of a caption."""
    weights = phase.mixture or {name: source.weight for name, source in data.sources.items()}
    shares = 0.0
    for name, weight in weights.items():
        source = data.sources[name]
        if isinstance(source, DescribedSource):
            shares += weight * source.image_share
        elif source.has_pictures:
            shares += weight * tokens_per_tile / (tokens_per_tile + NUM_MARKS + mean_caption_bytes() + 1)
    return shares / sum(weights.values())


def tiles_of_step(graph: LayerGraph, data: DataSpec, phase: Phase) -> int:
    """Image tiles in a step of a phase, on average; 0 for a model that does not see."""
    vision = graph.model.vision
    if vision is None:
        return 0
    per_tile = vision.num_tokens_per_tile
    return round(phase.batch * phase.context * image_share(data, phase, per_tile) / per_tile)


def num_trained(graph: LayerGraph, selectors: tuple[str, ...]) -> int:
    """Parameters that are trained."""
    trained = trained_names(graph, selectors)
    return sum(p.numel for node, p in graph.parameters() if f"{node.id}.{p.name}" in trained)


def trained_graph(graph: LayerGraph, phase: Phase) -> LayerGraph:
    """The graph whose tensors a phase trains: with modules of multi-token prediction where it trains these."""
    return graph if phase.modules is None else with_modules(graph)


def num_modules(graph: LayerGraph, phase: Phase) -> int:
    """Modules of multi-token prediction that a phase trains."""
    declared = graph.model.text.mtp
    return 0 if phase.modules is None or declared is None else declared.num_modules


def num_module_params(graph: LayerGraph, phase: Phase) -> int:
    """Parameters that these modules have of their own."""
    counts = count_mtp(graph)
    return 0 if phase.modules is None or counts is None else counts.own


def step_flops(graph: LayerGraph, phase: Phase, num_tiles: int) -> int:
    """FLOPs of one optimizer step: forward, and the needed parts of the backward pass.

    A module of multi-token prediction runs on all tokens of a row, its head too.
    """
    trained = trained_names(trained_graph(graph, phase), phase.trainable)
    work = Work(phase.batch, phase.context, phase="train")
    total, flows = _graph_flops(graph, PassTokens(work, num_tiles), trained)
    module = mtp_graph(graph)
    for index in range(num_modules(graph, phase)):
        assert module is not None, "what is trained is declared"
        own, flows = _graph_flops(module, PassTokens(work), trained, index, flows=flows)
        total += own
    return total


def _graph_flops(
    graph: LayerGraph, workload: PassTokens, trained: Set[str], module: int | None = None, *, flows: bool = False
) -> tuple[int, bool]:
    """FLOPs of the model or of one module, and whether gradients go through its last layer.

    `flows` says the same of what is before it.
    """
    operations = {
        node.id: row_of_group(graph, group, workload).operations for group in graph.groups for node in group.nodes
    }
    total = 0
    for node in graph.nodes:
        if node.scope == "vision" and not workload.num_tiles:
            continue
        place = node.id if module is None or node.role in MTP_SHARED else module_place(module, node.id)
        names = {f"{place}.{p.name}": p.tied_to for p in node.declaration.parameters if not p.buffer}
        flows = flows or any((tied or name) in trained for name, tied in names.items())
        total += sum(_passes(place, op, trained, flows=flows) * op.flops for op in operations[node.id])
    return total, flows


def _passes(place: str, op: Operation, trained: Set[str], *, flows: bool) -> int:
    """Passes of one operation of the layer at `place`; `flows`: gradients go through it."""
    if not isinstance(op, Matmul):
        return 3 if flows else 1
    name = op.weight.tied_to or f"{place}.{op.weight.name}"
    return 1 + (name in trained) + (flows and not op.leaf)
