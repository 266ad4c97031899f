"""Sparse upcycling: a mixture of experts from a dense model, in which every expert starts as the dense layer.

See arXiv:2212.05055. The chosen scores add up to 1 and all experts are equal, so the mixture's output is at first that
of the dense layer, whichever experts a token chooses; training then makes the experts differ.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Parameter
from l4spec.layers.moe.spec import MoESpec
from l4spec.progress import Progress
from l4spec.runtime.build import build
from l4spec.runtime.checkpoints.open import open_model
from l4spec.runtime.initialize import initialize
from l4spec.runtime.model import Model

_OF_DENSE = {
    f"experts.{name}_{tensor}": f"{name}_proj.{stored}"
    for name in ("gate", "up", "down")
    for tensor, stored in (("proj", "weight"), ("bias", "bias"))
}
"""Tensor of the dense gated layer that each expert of a stack is a copy of."""


_OF_EXPERTS = {"activation", "gated", "clamp"}
"""Fields of a mixture that a dense layer has too."""
_OF_KIND: Mapping[str, Mapping[str, object]] = {
    "swiglu": {"activation": "silu"},
    "geglu": {"activation": "gelu_tanh"},
    "mlp": {"gated": False},
}
"""Those that a kind of dense layer fixes."""
_SIZES = {"intermediate_size", "balance"}
"""Fields that the shapes of tensors tell, and that act in training alone."""


def upcycle(
    graph: LayerGraph,
    directory: Path | str,
    dtype: str | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Model:
    """Build the model of `graph` from a dense checkpoint, whose logits it reproduces; routers are random.

    Tensors of the same name are copied, and each expert of a mixture is a copy of the dense gated layer in its place.
    Raises UserError for a mixture that would not give the dense layer's output, and for every tensor without a source.
    """
    problems = [problem for node in graph.nodes for problem in _unlike_dense(node)]
    if problems:
        raise UserError(problems)
    parent = open_model(directory, "cpu", dtype, progress=progress)
    if problems := list(_unlike_parent(graph, parent.graph)):
        raise UserError(problems)
    model = build(graph, "cpu", dtype or graph.model.text.dtype, seed=None)
    initialize(model, graph, seed)
    _copy(graph, model.state_dict(keep_vars=True), parent.state_dict())
    return model


def _unlike_dense(node: LayerNode) -> Iterator[Problem]:
    """Problems of a mixture in which equal experts would not give the output of one of them."""
    spec = node.spec
    if not isinstance(spec, MoESpec):
        return
    router = spec.router
    needs = {
        "router.renormalize must be true, so that scores add up to 1": router.renormalize,
        "router.scales must be output": router.scales == "output",
        "router.scaling_factor must be 1": router.scaling_factor == 1.0,
        "num_shared_experts must be 0: what they add is not in the dense layer": not spec.num_shared_experts,
        "capacity_factor must be null: a dropped token gets nothing": spec.capacity_factor is None,
    }
    for need, is_met in needs.items():
        if not is_met:
            yield Problem(f"an upcycled mixture gives its parent's output only if {need}", path=node.id)


def _unlike_parent(graph: LayerGraph, parent: LayerGraph) -> Iterator[Problem]:
    """Problems of layers that would compute something else with the parent's weights; of equal layers one is named."""
    known = {node.id: node.spec for node in parent.nodes}
    seen = set[tuple[str, str]]()
    for node in graph.nodes:
        before = known.get(node.id)
        if before is None:
            continue  # tensors without a source are refused by name
        ours = node.spec.model_dump()
        theirs = {"gated": True, "clamp": None, **before.model_dump(), **_OF_KIND.get(before.kind, {})}
        if theirs.get("approximate") == "none":
            theirs["activation"] = "gelu"
        becomes_mixture = isinstance(node.spec, MoESpec) and not isinstance(before, MoESpec)
        for field in sorted((_OF_EXPERTS if becomes_mixture else {*ours}) - _SIZES):
            if ours[field] != theirs.get(field) and (node.role, field) not in seen:
                seen.add((node.role, field))
                message = (
                    f"{field} is {ours[field]}, and {theirs.get(field)} in the checkpoint's model: outputs would differ"
                )
                yield Problem(message, path=node.id)


@torch.no_grad()
def _copy(graph: LayerGraph, targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    problems, used = [], set[str]()
    for node, parameter in graph.parameters():
        if parameter.tied_to is not None or parameter.part == "router":
            continue
        name, source = f"{node.id}.{parameter.name}", _source(node, parameter)
        dense = sources.get(source)
        used.add(source)
        target = targets[name]
        shape = target.shape[1:] if source != name else target.shape
        if dense is None or dense.shape != shape:
            other = "none" if dense is None else f"{list(dense.shape)}"
            problems.append(
                Problem(f"needs {source} of shape {list(shape)} from the checkpoint, found {other}", path=name)
            )
        else:
            target.copy_(dense)  # a stack takes it once for each expert
    problems += [
        Problem("is in the checkpoint, and the model has no place for it", path=n) for n in sources if n not in used
    ]
    if problems:
        raise UserError(problems)


def _source(node: LayerNode, parameter: Parameter) -> str:
    """The tensor of the dense model that a parameter is a copy of."""
    return f"{node.id}.{_OF_DENSE.get(parameter.name, parameter.name)}"
