"""A routing histogram that somebody measured: how often each expert of each layer was chosen."""

import json
from pathlib import Path
from typing import Any

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph
from planners.timing.layer_demand import UNIFORM, Routing

MOST_BYTES = 64 << 20
MOST_CHOICES = 1 << 62
_EXPECTED = "expected what `l4spec measure SPEC --format json` writes"


def read_routing(path: str | None, graph: LayerGraph) -> Routing:
    """The histogram in the `expert_load` of a measurement's JSON file; uniform routing without a file.

    A layer of the model that the file does not name counts as uniform. Raises UserError for a file that is no
    measurement, names a layer that the model does not have, or counts other numbers of experts.
    """
    if path is None:
        return UNIFORM
    from l4spec.spec.files import read_utf8

    text = read_utf8(Path(path), MOST_BYTES)
    try:
        loads = json.loads(text)["expert_load"]
        counts = {load["layer"]: tuple(map(_count, load["choices_per_expert"])) for load in loads}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError([Problem(f"{path} holds no expert load: {_EXPECTED}", path="routing")]) from None
    problems = [problem for layer, row in counts.items() for problem in _problems(graph, str(layer), row)]
    if not counts:
        problems.append(Problem(f"{path} names no layer: {_EXPECTED} of a mixture of experts", path="routing"))
    if problems:
        raise UserError(problems)
    return Routing(layers=tuple(sorted(counts.items())))


def _count(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_CHOICES:
        raise ValueError("no number of choices")
    return float(value)


def _problems(graph: LayerGraph, layer: str, counts: tuple[float, ...]) -> list[Problem]:
    node = graph.by_id.get(layer)
    routed = None if node is None else node.declaration.routed
    if routed is None:
        return [Problem(f"{graph.name} has no mixture of experts called {layer[:60]!r}", path="routing")]
    if len(counts) != routed.num_experts:
        message = f"{layer} has {routed.num_experts} experts, the file counts {len(counts)}"
        return [Problem(message, path="routing")]
    return [] if sum(counts) else [Problem(f"no expert of {layer} was ever chosen", path="routing")]
