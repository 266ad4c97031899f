"""Distribution of tokens over experts: uniform, a law, a shipped profile, or a measurement of one's own.

    uniform            every expert equally often
    power_law:1.2      the k-th most popular expert in proportion to 1 / k^1.2
    log_normal:1.0     shares whose logarithms are normally distributed with this standard deviation
    maverick           a profile of the catalogue (planners/catalog/expert_load)
    FILE               the `expert_load` of `l4spec measure SPEC --format json`

Popular experts may be anywhere: laws are assigned to experts in an order that a layer's name determines.
"""

from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4spec.errors import Problem, UserError, nearest
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from planners.catalog.loader import find_shipped, load, shipped_names
from planners.timing.layer_demand import UNIFORM, Routing

if TYPE_CHECKING:
    from planners.catalog.expert_load import ExpertLoadProfile

MOST_BYTES = 64 << 20
MOST_CHOICES = 1 << 62
LAWS = ("power_law", "log_normal")
_EXPECTED = "expected what `l4spec measure SPEC --format json` writes"


def read_routing(text: str | None, graph: LayerGraph) -> Routing:
    """The routing that `text` names (see above); uniform without one.

    Of a measurement's file, a layer of the model that it does not name counts as uniform. Raises UserError for an
    unknown name, a model without routed layers, a profile of other sizes, and a file that is no measurement.
    """
    if text is None or text == "uniform":
        return UNIFORM
    law, colon, value = text.partition(":")
    if colon and law in LAWS:
        return _by_law(law, value, graph)
    if find_shipped("expert_load", text) is not None:
        from planners.catalog.expert_load import ExpertLoadProfile

        return _shipped(load("expert_load", ExpertLoadProfile, text), graph)
    if not Path(text).exists():
        known = ("uniform", "power_law:1.2", "log_normal:1.0", *shipped_names("expert_load"))
        hint = nearest(text, known)
        raise UserError([Problem(f"no expert load is called {text[:60]!r}, and no file", path="routing", hint=hint)])
    return _measured(text, graph)


def routed_nodes(graph: LayerGraph) -> list[LayerNode]:
    """The layers of the language model with routed experts, from input to output."""
    nodes = [node for group in graph.groups for node in group.nodes if node.declaration.routed is not None]
    return [node for node in sorted(nodes, key=_position) if node.scope == "text"]


def _position(node: LayerNode) -> tuple[int, str]:
    digits = "".join(part if part.isdecimal() else " " for part in node.id.replace(".", " ").split(" "))
    numbers = [int(part) for part in digits.split()]
    return (numbers[0] if numbers else 0, node.id)


def _routed(graph: LayerGraph) -> list[LayerNode]:
    nodes = routed_nodes(graph)
    if not nodes:
        raise UserError([Problem(f"{graph.name} has no mixture of experts", path="routing", hint="leave it out")])
    return nodes


def _by_law(law: str, value: str, graph: LayerGraph) -> Routing:
    from random import Random
    from statistics import NormalDist

    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 20:
        message = f"expected {law}:NUMBER with a number from 0 to 20, found {value[:40]!r}"
        raise UserError([Problem(message, path="routing")])
    layers = []
    for node in _routed(graph):
        assert node.declaration.routed is not None, "chosen for it"
        count = node.declaration.routed.num_experts
        if law == "power_law":
            shares = [(rank + 1) ** -number for rank in range(count)]
        else:
            normal = NormalDist()
            shares = [exp(number * normal.inv_cdf((rank + 0.5) / count)) for rank in range(count)]
        Random(node.id).shuffle(shares)
        layers.append((node.id, tuple(shares)))
    return Routing(layers=tuple(sorted(layers)))


def _shipped(profile: "ExpertLoadProfile", graph: LayerGraph) -> Routing:
    nodes = _routed(graph)
    experts = {node.declaration.routed.num_experts for node in nodes if node.declaration.routed is not None}
    if experts != {profile.num_experts} or len(nodes) != len(profile.choices):
        message = (
            f"profile {profile.name} counts {profile.num_experts} experts in {len(profile.choices)} layers, "
            f"{graph.name} has {', '.join(map(str, sorted(experts)))} in {len(nodes)}"
        )
        raise UserError([Problem(message, path="routing", hint="use power_law:1.2 or log_normal:1.0")])
    rows = zip(nodes, profile.choices, strict=True)
    return Routing(layers=tuple(sorted((node.id, tuple(map(float, row))) for node, row in rows)))


def _measured(path: str, graph: LayerGraph) -> Routing:
    import json

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
