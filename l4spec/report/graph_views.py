"""The layer graph as text, Mermaid, Graphviz DOT or JSON: block by block, or every layer with its operations."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import AttentionPairs, Declaration, HeadProducts, Matmul, Operation, Work
from l4spec.report.quantities import count

_HEADERS = ("node", "layer", "parameters", "takes", "from")
_RIGHT = 2
"""The column of numbers; tables of 60,000 rows are aligned here, which tabulate takes seconds for."""


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
    inside: dict[int, tuple[ViewOperation, ...]] = {}
    if level == "op":
        inside = {id(group.declaration): _operations(group.declaration) for group in graph.groups}
    nodes = tuple(_box(box, nodes, inside.get(id(nodes[0].declaration), ())) for box, nodes in members.items())
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


def _operations(declaration: Declaration) -> tuple[ViewOperation, ...]:
    """What the layer declares to do for one token."""
    return tuple(_operation(operation) for operation in declaration.operations(Work(1, 1)))


def _operation(operation: Operation) -> ViewOperation:
    if isinstance(operation, Matmul):
        return ViewOperation(operation.name, "matmul", f"weight {list(operation.weight.shape)}")
    if isinstance(operation, AttentionPairs):
        widths = f"query-key {operation.qk_dim}, value {operation.v_dim}"
        return ViewOperation(operation.name, "attention", f"{operation.num_heads} heads, {widths}")
    if isinstance(operation, HeadProducts):
        facts = f"{operation.num_heads} heads, {operation.flops} FLOPs per token"
        return ViewOperation(operation.name, "products", facts)
    return ViewOperation(operation.name, "elementwise", f"{operation.elements} elements per token")


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
    writers: dict[str, Callable[[View], Iterator[str]]] = {
        "text": _text,
        "mermaid": _mermaid,
        "dot": _dot,
        "json": _json,
    }
    return "\n".join(writers[style](view))


def _json(view: View) -> Iterator[str]:
    """One line for each node and edge: an indented file of 10,000 layers would be four times as large."""
    yield f'{{\n "model": {json.dumps(view.model)},\n "level": {json.dumps(view.level)},\n "nodes": ['
    yield from _json_lines(view.nodes)
    yield ' ],\n "edges": ['
    yield from _json_lines(view.edges)
    yield " ]\n}"


def _json_lines(items: Sequence[ViewNode | ViewEdge]) -> Iterator[str]:
    write = json.JSONEncoder(default=_fields, separators=(",", ":")).encode
    for number, item in enumerate(items, 1):
        yield f"  {write(item)}{',' if number < len(items) else ''}"


def _fields(item: ViewNode | ViewEdge | ViewOperation) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__slots__}


def _title(node: ViewNode) -> str:
    times = f"{node.count} × " if node.count > 1 else ""
    return f"{times}{node.label}" if node.kind in ("block", node.label) else f"{times}{node.label} ({node.kind})"


def _label(node: ViewNode) -> list[str]:
    return [_title(node), count(node.parameters), *(operation.name for operation in node.operations)]


def _shape(edge: ViewEdge) -> str:
    return f"[{', '.join(str(dim) for dim in edge.shape)}]"


def _text(view: View) -> Iterator[str]:
    inputs: dict[str, list[ViewEdge]] = {}
    for edge in view.edges:
        inputs.setdefault(edge.target, []).append(edge)
    rows: list[tuple[str, ...]] = [_HEADERS, ("", "", "", "", "")]
    for node in view.nodes:
        edges = sorted(inputs.get(node.id, []), key=lambda edge: edge.port)
        sources = ", ".join(edge.source for edge in edges)
        shape = _shape(edges[0]) if edges else "-"
        rows.append((node.id, _title(node), count(node.parameters), shape, sources or "-"))
        rows += [(f"    {op.name}", op.kind, "", op.detail, "") for op in node.operations]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows[1] = tuple("-" * width for width in widths)
    line = "  ".join(f"{{:{'>' if index == _RIGHT else '<'}{width}}}" for index, width in enumerate(widths))
    yield view.model
    yield ""
    yield from (line.format(*row).rstrip() for row in rows)


def _numbers(view: View) -> dict[str, str]:
    return {node.id: f"n{index}" for index, node in enumerate(view.nodes)}


def _quoted(text: str) -> str:
    return text.replace("\\", "").replace('"', "'")


def _by_scope(view: View) -> Iterator[tuple[str, list[ViewNode]]]:
    scopes = dict.fromkeys(node.scope for node in view.nodes)
    yield from ((scope, [node for node in view.nodes if node.scope == scope]) for scope in scopes)


def _mermaid(view: View) -> Iterator[str]:
    number = _numbers(view)
    yield from ("---", f'title: "{_quoted(view.model)}"', "---", "flowchart TD")
    for scope, nodes in _by_scope(view):
        yield f"  subgraph {scope}_part [{scope}]"
        yield from (f'    {number[n.id]}["{_quoted("<br/>".join(_label(n)))}"]' for n in nodes)
        yield "  end"
    yield from (f'  {number[e.source]} -->|"{_shape(e)}"| {number[e.target]}' for e in view.edges)


def _dot(view: View) -> Iterator[str]:
    number = _numbers(view)
    yield from (f'digraph "{_quoted(view.model)}" {{', "  node [shape=box];")
    for scope, nodes in _by_scope(view):
        yield f'  subgraph "cluster_{scope}" {{ label="{scope}";'
        labels = {node.id: "\\n".join(_quoted(line) for line in _label(node)) for node in nodes}
        yield from (f'    {number[n.id]} [label="{labels[n.id]}"];' for n in nodes)
        yield "  }"
    yield from (f'  {number[e.source]} -> {number[e.target]} [label="{_shape(e)}"];' for e in view.edges)
    yield "}"
