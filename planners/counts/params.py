"""Parameter counts: in total, and active per token."""

from collections import defaultdict

from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from planners.plan_types import LayerParams, Params

_SEEING = ("vision", "projector")


@kept_with(maxsize=64)
def count_params(graph: LayerGraph) -> Params:
    """Parameters in total, active per token, by part and by layer. Buffers and tied copies are not counted.

    Active: routed experts count as the `num_experts_per_token` that a text token uses; vision and projector are left
    out of `active` and `active_without_embedding`, and the embedding table of the latter (a tied one stays, as head).
    """
    by_part: dict[str, int] = defaultdict(int)
    active_by_part: dict[str, int] = defaultdict(int)
    for group in graph.groups:
        for parameter in group.declaration.parameters:
            part = group.first.part_of(parameter)
            by_part[part] += group.count * parameter.numel
            active_by_part[part] += group.count * parameter.num_active_elements
    active = sum(count for part, count in active_by_part.items() if part not in _SEEING)
    table = 0 if graph.model.text.head.tied else by_part["embedding"]
    return Params(
        total=sum(by_part.values()),
        active=active,
        active_without_embedding=active - table,
        active_with_vision=sum(active_by_part.values()),
        by_part=dict(by_part),
        active_by_part=dict(active_by_part),
        by_layer=_by_layer(graph),
    )


def _by_layer(graph: LayerGraph) -> tuple[LayerParams, ...]:
    totals: dict[int, list[LayerNode]] = defaultdict(list)
    for node in graph.nodes:
        if node.scope == "text" and node.layer is not None:
            totals[node.layer].append(node)
    gathered: dict[tuple[str, str, int, int], list[int]] = defaultdict(list)
    for layer, nodes in totals.items():
        names = {role: " + ".join(node.label for node in nodes if node.role == role) for role in ("attention", "ffn")}
        total = sum(node.declaration.num_parameters for node in nodes)
        active = sum(node.declaration.num_active_parameters for node in nodes)
        gathered[names["attention"], names["ffn"], total, active].append(layer)
    return tuple(
        LayerParams(layers=tuple(layers), attention=attention, ffn=ffn, total=total, active=active)
        for (attention, ffn, total, active), layers in gathered.items()
    )
