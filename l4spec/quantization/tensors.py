"""A model's tensors under a quantization scheme: which law stores each, and in how many bytes."""

from functools import lru_cache
from math import gcd, prod
from typing import NamedTuple

from l4spec.errors import Problem, UserError
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import INDEX_BYTES, Parameter
from l4spec.quantization.packing import Refusal, StoredSize, cut_block, stored_bytes
from l4spec.quantization.scheme import Quantization, regrouped
from l4spec.spec.storage import ScaledLaw, Target


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
    """Properties of a tensor that the scheme's rules select by."""
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
    if parameter.index is not None:
        return StoredSize(prod(shape) * INDEX_BYTES)
    law = scheme.table.law_for(target_of(graph, node, parameter))
    cut = cut_block(law, parameter.shape, shape) if isinstance(law, ScaledLaw) else None
    size = cut or stored_bytes(law, shape, parameter.input_dim)
    if isinstance(size, Refusal):
        path = f"{node.id}.{parameter.name}"
        problem = Problem(
            f"{scheme.name} cannot store it: {size.reason}", path=path, hint="choose another scheme or degree"
        )
        raise UserError([problem])
    return size


class StoredTensors(NamedTuple):
    """`count` tensors of a model, of equal layers, that are stored alike; `size` is that of one."""

    node: LayerNode
    parameter: Parameter
    count: int  # type: ignore[assignment]  # tuple has a method of this name
    size: StoredSize


@kept_with(maxsize=512)
def stored_tensors(graph: LayerGraph, scheme: Scheme) -> tuple[StoredTensors, ...]:
    """Every tensor that the model holds, buffers included and tied ones once. Raises UserError naming each refusal."""
    tensors: list[StoredTensors] = []
    problems: list[Problem] = []
    for node, parameter, count in _distinct(graph, scheme):
        if parameter.tied_to:
            continue
        try:
            size = stored_size(graph, node, parameter, parameter.shape, scheme)
        except UserError as error:
            problems.extend(error.problems)
            continue
        tensors.append(StoredTensors(node, parameter, count, size))
    if problems:
        raise UserError(problems)
    return tuple(tensors)


def _distinct(graph: LayerGraph, scheme: Scheme) -> list[tuple[LayerNode, Parameter, int]]:
    """One entry per tensor that may be stored differently, with how many such there are."""
    if scheme.depends_on_layer:
        return [(node, parameter, 1) for node, parameter in graph.parameters()]
    return [(group.first, p, group.count) for group in graph.groups for p in group.declaration.parameters]


def fitted(graph: LayerGraph, table: Quantization) -> Quantization:
    """The scheme with the largest groups, of at most its own size, that divide every tensor that is stored in groups.

    For miniatures: their widths shrink, and so do the groups, or the scheme could store none of them.
    """
    size = 0
    for node, parameter in graph.parameters():
        law = table.law_for(target_of(graph, node, parameter))
        if isinstance(law, ScaledLaw) and isinstance(law.group, int) and parameter.tied_to is None:
            axis = -1 if parameter.input_dim is None else parameter.input_dim
            size = gcd(size, law.group, parameter.shape[axis])
    return table if not size or table.group_sizes == {size} else regrouped(table, size)
