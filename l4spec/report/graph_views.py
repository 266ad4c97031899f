"""The layer graph as text, Mermaid, Graphviz DOT or JSON: block by block, or every layer with its operations."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import AttentionPairs, Matmul, Operation, Work
from l4spec.report.quantities import count

_INSIDE = "...."
"""Stands for the indent of an operation below its layer while columns are aligned."""


@dataclass(frozen=True, slots=True)
class ViewNode:
    """One box: a layer, or a run of `count` equal blocks."""

    id: str
    label: str
    kind: str
    scope: str
    count: int
    parameters: int
    operations: tuple["ViewOperation", ...] = ()


@dataclass(frozen=True, slots=True)
class ViewOperation:
    """What a layer does inside: a `matmul` with its weight's shape, `attention` over its heads, `elementwise` work."""

    name: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class ViewEdge:
    """What flows from one box to another."""

    source: str
    target: str
    port: int
    tensor: str
    shape: tuple[str | int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class View:
    """Boxes in topological order, and what flows between them."""

    model: str
    level: str
    nodes: tuple[ViewNode, ...]
    edges: tuple[ViewEdge, ...]


def view_of(graph: LayerGraph, level: str) -> View:
    """The graph at `op` level, one box a layer with its operations, or at `block` level, one a run of equal blocks."""
    box_of = _boxes(graph) if level == "block" else {node.id: node.id for node in graph.nodes}
    members: dict[str, list[LayerNode]] = {}
    for node in graph.nodes:
        members.setdefault(box_of[node.id], []).append(node)
    edges = tuple(
        ViewEdge(box_of[e.source], box_of[e.target], e.port, e.tensor.name, e.tensor.shape, e.tensor.dtype)
        for e in graph.edges
        if box_of[e.source] != box_of[e.target]
    )
    inside = _operations if level == "op" else _nothing
    nodes = tuple(_box(box, nodes, inside(nodes[0])) for box, nodes in members.items())
    return View(graph.name, level, nodes, tuple(dict.fromkeys(edges)))


def _boxes(graph: LayerGraph) -> dict[str, str]:
    """For each node the box of the block level that holds it."""
    blocks: dict[tuple[str, int], list[LayerNode]] = {}
    for node in graph.nodes:
        if node.layer is not None:
            blocks.setdefault((node.scope, node.layer), []).append(node)
    boxes = {node.id: node.id for node in graph.nodes}
    for scope in ("vision", "text"):
        layers = [layer for owner, layer in blocks if owner == scope]
        looks = {layer: [_same(node) for node in blocks[scope, layer]] for layer in layers}
        for _, run in groupby(layers, looks.__getitem__):
            members = list(run)
            name = f"{scope}.layers.{members[0]}" + (f"-{members[-1]}" if len(members) > 1 else "")
            boxes.update({node.id: name for layer in members for node in blocks[scope, layer]})
    return boxes


def _same(node: LayerNode) -> tuple[str, str, int]:
    return node.role, node.label, id(node.declaration)


def _nothing(node: LayerNode) -> tuple[ViewOperation, ...]:
    return ()


def _operations(node: LayerNode) -> tuple[ViewOperation, ...]:
    """What the layer declares to do for one token."""
    return tuple(_operation(operation) for operation in node.declaration.operations(Work(1, 1)))


def _operation(operation: Operation) -> ViewOperation:
    if isinstance(operation, Matmul):
        return ViewOperation(operation.name, "matmul", f"weight {list(operation.weight.shape)}")
    if isinstance(operation, AttentionPairs):
        widths = f"query-key {operation.qk_dim}, value {operation.v_dim}"
        return ViewOperation(operation.name, "attention", f"{operation.num_heads} heads, {widths}")
    return ViewOperation(operation.name, "elementwise", f"{operation.elements} elements a token")


def _box(box: str, nodes: list[LayerNode], operations: tuple[ViewOperation, ...]) -> ViewNode:
    parameters = sum(node.declaration.num_parameters for node in nodes)
    first = nodes[0]
    if box == first.id:
        return ViewNode(box, first.label, first.kind, first.scope, 1, parameters, operations)
    layers = sorted({node.layer for node in nodes if node.layer is not None})
    names = [node.label for node in nodes if node.layer == layers[0] and node.role in ("attention", "ffn")]
    return ViewNode(box, " + ".join(names), "block", first.scope, len(layers), parameters)


def write_view(view: View, style: str) -> str:
    """The view as `text`, `mermaid`, `dot` or `json`."""
    writers: dict[str, Callable[[View], str]] = {
        "text": _text,
        "mermaid": _mermaid,
        "dot": _dot,
        "json": lambda view: json.dumps(asdict(view), indent=2),
    }
    return writers[style](view)


def _title(node: ViewNode) -> str:
    times = f"{node.count} × " if node.count > 1 else ""
    return f"{times}{node.label}" if node.kind in ("block", node.label) else f"{times}{node.label} ({node.kind})"


def _label(node: ViewNode) -> list[str]:
    return [_title(node), count(node.parameters), *(operation.name for operation in node.operations)]


def _shape(edge: ViewEdge) -> str:
    return f"[{', '.join(str(dim) for dim in edge.shape)}]"


def _text(view: View) -> str:
    from tabulate import tabulate

    inputs: dict[str, list[ViewEdge]] = {}
    for edge in view.edges:
        inputs.setdefault(edge.target, []).append(edge)
    rows = []
    for node in view.nodes:
        edges = sorted(inputs.get(node.id, []), key=lambda edge: edge.port)
        sources = ", ".join(edge.source for edge in edges)
        shape = _shape(edges[0]) if edges else "-"
        rows.append((node.id, _title(node), count(node.parameters), shape, sources or "-"))
        rows += [(f"{_INSIDE}{op.name}", op.kind, "", op.detail, "") for op in node.operations]
    headers = ("node", "layer", "parameters", "takes", "from")
    table = tabulate(
        rows, headers=headers, tablefmt="simple", disable_numparse=True, colalign=("left", "left", "right")
    )
    lines = (line.replace(_INSIDE, " " * len(_INSIDE)) for line in table.splitlines())
    return "\n".join(line.rstrip() for line in [view.model, "", *lines])


def _numbers(view: View) -> dict[str, str]:
    return {node.id: f"n{index}" for index, node in enumerate(view.nodes)}


def _quoted(text: str) -> str:
    return text.replace("\\", "").replace('"', "'")


def _by_scope(view: View) -> Iterator[tuple[str, list[ViewNode]]]:
    scopes = dict.fromkeys(node.scope for node in view.nodes)
    yield from ((scope, [node for node in view.nodes if node.scope == scope]) for scope in scopes)


def _mermaid(view: View) -> str:
    number = _numbers(view)
    lines = ["---", f'title: "{_quoted(view.model)}"', "---", "flowchart TD"]
    for scope, nodes in _by_scope(view):
        lines.append(f"  subgraph {scope}_part [{scope}]")
        lines += [f'    {number[n.id]}["{_quoted("<br/>".join(_label(n)))}"]' for n in nodes]
        lines.append("  end")
    lines += [f'  {number[e.source]} -->|"{_shape(e)}"| {number[e.target]}' for e in view.edges]
    return "\n".join(lines)


def _dot(view: View) -> str:
    number = _numbers(view)
    lines = [f'digraph "{_quoted(view.model)}" {{', "  node [shape=box];"]
    for scope, nodes in _by_scope(view):
        lines.append(f'  subgraph "cluster_{scope}" {{ label="{scope}";')
        labels = {node.id: "\\n".join(_quoted(line) for line in _label(node)) for node in nodes}
        lines += [f'    {number[n.id]} [label="{labels[n.id]}"];' for n in nodes]
        lines.append("  }")
    lines += [f'  {number[e.source]} -> {number[e.target]} [label="{_shape(e)}"];' for e in view.edges]
    return "\n".join([*lines, "}"])
