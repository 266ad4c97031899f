"""How many bytes a model's weights take under a quantization scheme."""

from collections import defaultdict
from functools import lru_cache

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Parameter
from planners.catalog.quantization import Quantization, Target
from planners.plan_types import Weights
from planners.quantization import Refusal, StoredSize, stored_bytes


class Scheme:
    """A quantization scheme made ready for one plan after another: compared by identity, cheap to use as a key."""

    def __init__(self, table: Quantization) -> None:
        self.table = table
        self.name = table.name
        self.depends_on_layer = table.depends_on_layer


@lru_cache(maxsize=256)
def scheme_of(table: Quantization) -> Scheme:
    """The scheme of a rule table; the same object for the same table."""
    return Scheme(table)


def target_of(graph: LayerGraph, node: LayerNode, parameter: Parameter) -> Target:
    """What the scheme's rules see of a tensor."""
    return Target(
        name=parameter.name,
        part=node.part_of(parameter),
        role=parameter.role,
        layer=node.layer if node.scope == "text" else None,
        num_layers=graph.num_layers if node.scope == "text" else None,
        tied=graph.model.text.head.tied,
    )


def stored_size(
    graph: LayerGraph, node: LayerNode, parameter: Parameter, shape: tuple[int, ...], scheme: Scheme
) -> StoredSize:
    """Bytes of a tensor, or of a shard of it of `shape`. Raises UserError where the scheme cannot pack it."""
    law = scheme.table.law_for(target_of(graph, node, parameter))
    size = stored_bytes(law, shape, parameter.input_dim)
    if isinstance(size, Refusal):
        path = f"{node.id}.{parameter.name}"
        problem = Problem(
            f"{scheme.name} cannot store it: {size.reason}", path=path, hint="choose another scheme or degree"
        )
        raise UserError([problem])
    return size


@lru_cache(maxsize=512)
def weigh(graph: LayerGraph, scheme: Scheme) -> Weights:
    """The whole model's weights: by part, payload and scales. Tied tensors count once, buffers count."""
    by_part: dict[str, int] = defaultdict(int)
    scale_bytes = 0
    refusals = []
    for node, parameter, count in _distinct_tensors(graph, scheme):
        if parameter.tied_to:
            continue
        try:
            size = stored_size(graph, node, parameter, parameter.shape, scheme)
        except UserError as error:
            refusals.append(str(error))
            continue
        by_part[node.part_of(parameter)] += count * size.total_bytes
        scale_bytes += count * (size.scale_bytes + size.zero_point_bytes)
    if refusals:
        raise UserError([Problem(refusal) for refusal in refusals])
    return Weights(
        bytes=sum(by_part.values()), scale_bytes=scale_bytes, scheme=scheme.name, by_part=dict(by_part), refusals=()
    )


def _distinct_tensors(graph: LayerGraph, scheme: Scheme) -> list[tuple[LayerNode, Parameter, int]]:
    """One entry per tensor that may be stored differently, with how many such there are."""
    if scheme.depends_on_layer:
        return [(node, parameter, 1) for node, parameter in graph.parameters()]
    return [(group.first, p, group.count) for group in graph.groups for p in group.declaration.parameters]
