"""The layer graph as text, Mermaid, Graphviz DOT or JSON: folded block by block, or every layer with its operations."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import AttentionPairs, Declaration, HeadProducts, Matmul, Operation, Work
from l4spec.report.fold import fold, runs
from l4spec.report.quantities import count, whole

_HEADERS = ("node", "layer", "parameters", "takes", "from")
_RIGHT = 2
"""The column of numbers; tables of 60,000 rows are aligned here, which tabulate takes seconds for."""


@dataclass(frozen=True, slots=True)
class ViewNode:
    """One box: a layer, or a run of equal blocks; `count` and `parameters` are those of all repeats of its fold."""

    id: str
    label: str
    kind: str
    scope: str
    count: int
    parameters: int
    operations: tuple["ViewOperation", ...] = ()
    fold: str | None = None


@dataclass(frozen=True, slots=True)
class ViewFold:
    """A pattern of `period` blocks, repeated `repeats` times from block `first` to block `last`."""

    id: str
    scope: str
    first: int
    last: int
    period: int
    repeats: int


@dataclass(frozen=True, slots=True)
class ViewOperation:
    """Operation of a layer: a `matmul` with its weight's shape, `attention` over its heads, or `elementwise` work."""

    name: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class ViewEdge:
    """Tensor between two boxes."""

    source: str
    target: str
    port: int
    tensor: str
    shape: tuple[str | int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class View:
    """Boxes in topological order, and the tensors between them, except from one repeat of a fold to the next."""

    model: str
    level: str
    nodes: tuple[ViewNode, ...]
    edges: tuple[ViewEdge, ...]
    folds: tuple[ViewFold, ...] = ()


def view_of(graph: LayerGraph, level: str) -> View:
    """The graph at `op` level, one box per layer with its operations, or at `block` level, repeated layers folded."""
    folding = _folded(graph) if level == "block" else _Folding((), {}, {})
    box_of = {node.id: folding.box_of.get(node.id, node.id) for node in graph.nodes}
    members: dict[str, list[LayerNode]] = {}
    for node in graph.nodes:
        members.setdefault(box_of[node.id], []).append(node)
    position = {box: index for index, box in enumerate(members)}
    edges = tuple(
        ViewEdge(box_of[e.source], box_of[e.target], e.port, e.tensor.name, e.tensor.shape, e.tensor.dtype)
        for e in graph.edges
        if position[box_of[e.source]] < position[box_of[e.target]]
    )
    inside: dict[int, tuple[ViewOperation, ...]] = {}
    if level == "op":
        inside = {id(group.declaration): operations_of(group.declaration) for group in graph.groups}
    nodes = tuple(
        _box(box, nodes, inside.get(id(nodes[0].declaration), ()), folding.fold_of.get(box))
        for box, nodes in members.items()
    )
    return View(graph.name, level, nodes, _once(edges), folding.folds)


def _once(edges: tuple[ViewEdge, ...]) -> tuple[ViewEdge, ...]:
    """The first edge of each kind between two boxes: those of later repeats differ by the tensor's name alone."""
    kinds: dict[tuple[object, ...], ViewEdge] = {}
    for edge in edges:
        kinds.setdefault((edge.source, edge.target, edge.port, edge.shape, edge.dtype), edge)
    return tuple(kinds.values())


@dataclass(frozen=True, slots=True)
class _Folding:
    folds: tuple[ViewFold, ...]
    box_of: dict[str, str]
    fold_of: dict[str, str]


def _folded(graph: LayerGraph) -> _Folding:
    """The box that holds each layer of a block, and the fold that holds each box."""
    folds, box_of, fold_of = [], {}, {}
    for scope, blocks in blocks_of(graph).items():
        layers, looks = tuple(blocks), [look_of(nodes) for nodes in blocks.values()]
        for one in fold(looks):
            first, last = layers[one.start], layers[one.stop - 1]
            together = ViewFold(f"{scope}.layers.{first}-{last}", scope, first, last, one.period, one.repeats)
            mixed = one.repeats > 1 and one.period > 1
            folds += [together] if mixed else []
            for run in runs(looks, one):
                copies = [index for place in range(run.length) for index in one.copies(run.offset + place)]
                shown = range(one.start + run.offset, one.start + run.offset + run.length) if mixed else sorted(copies)
                box = _named(scope, layers[shown[0]], layers[shown[-1]])
                box_of.update({node.id: box for index in copies for node in blocks[layers[index]]})
                fold_of.update({box: together.id} if mixed else {})
    return _Folding(tuple(folds), box_of, fold_of)


def _named(scope: str, first: int, last: int) -> str:
    return f"{scope}.layers.{first}" + (f"-{last}" if last > first else "")


def blocks_of(graph: LayerGraph) -> dict[str, dict[int, list[LayerNode]]]:
    """For `vision` and `text`, the layers of each block by its index."""
    blocks: dict[str, dict[int, list[LayerNode]]] = {"vision": {}, "text": {}}
    for node in graph.nodes:
        if node.layer is not None:
            blocks[node.scope].setdefault(node.layer, []).append(node)
    return blocks


def look_of(block: Sequence[LayerNode]) -> tuple[tuple[str, str, int], ...]:
    """Key of a block's contents, equal for equal blocks: roles, labels and declarations of its layers."""
    return tuple((node.role, node.label, id(node.declaration)) for node in block)


def operations_of(declaration: Declaration) -> tuple[ViewOperation, ...]:
    """Operations that the layer declares, for one token."""
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


def _box(box: str, nodes: list[LayerNode], operations: tuple[ViewOperation, ...], fold_id: str | None) -> ViewNode:
    parameters = sum(node.declaration.num_parameters for node in nodes)
    first = nodes[0]
    if box == first.id:
        return ViewNode(box, first.label, first.kind, first.scope, 1, parameters, operations)
    layers = sorted({node.layer for node in nodes if node.layer is not None})
    names = [node.label for node in nodes if node.layer == layers[0] and node.role in ("attention", "ffn")]
    label = " + ".join(names)
    return ViewNode(box, label, "block", first.scope, len(layers), parameters, fold=fold_id)


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
    yield f'{{\n "model": {json.dumps(view.model)},\n "level": {json.dumps(view.level)},\n "folds": ['
    yield from _json_lines(view.folds)
    yield ' ],\n "nodes": ['
    yield from _json_lines(view.nodes)
    yield ' ],\n "edges": ['
    yield from _json_lines(view.edges)
    yield " ]\n}"


def _json_lines(items: Sequence[ViewNode | ViewEdge | ViewFold]) -> Iterator[str]:
    write = json.JSONEncoder(default=_fields, separators=(",", ":")).encode
    for number, item in enumerate(items, 1):
        yield f"  {write(item)}{',' if number < len(items) else ''}"


def _fields(item: ViewNode | ViewEdge | ViewOperation | ViewFold) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__slots__}


def _title(node: ViewNode, repeats: int = 1) -> str:
    """Label of a box, with its count within one repeat of its fold."""
    times = f"{node.count // repeats} × " if node.count > repeats else ""
    return f"{times}{node.label}" if node.kind in ("block", node.label) else f"{times}{node.label} ({node.kind})"


def _label(node: ViewNode, repeats: int) -> list[str]:
    return [_title(node, repeats), count(node.parameters), *(operation.name for operation in node.operations)]


def _shape(edge: ViewEdge) -> str:
    return f"[{', '.join(str(dim) for dim in edge.shape)}]"


def _text(view: View) -> Iterator[str]:
    inputs: dict[str, list[ViewEdge]] = {}
    for edge in view.edges:
        inputs.setdefault(edge.target, []).append(edge)
    rows: list[tuple[str, ...]] = [_HEADERS, ("", "", "", "", "")]
    repeats = _repeats(view)
    for outer, node in _with_folds(view):
        if outer is not None:
            rows.append((outer.id, _fold_title(outer), "", "", ""))
        edges = sorted(inputs.get(node.id, []), key=lambda edge: edge.port)
        sources = ", ".join(edge.source for edge in edges)
        shape = _shape(edges[0]) if edges else "-"
        indent = "" if node.fold is None else "  "
        rows.append((indent + node.id, _title(node, repeats[node.id]), count(node.parameters), shape, sources or "-"))
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


def _repeats(view: View) -> dict[str, int]:
    """Number of repeats of each box's fold; 1 outside of folds."""
    times = {fold.id: fold.repeats for fold in view.folds}
    return {node.id: times.get(node.fold or "", 1) for node in view.nodes}


def _fold_title(one: ViewFold) -> str:
    return f"{whole(one.repeats)} × {one.period} layers"


def _with_folds(view: View) -> Iterator[tuple[ViewFold | None, ViewNode]]:
    """Every box, the first one of a fold with this fold."""
    folds = {fold.id: fold for fold in view.folds}
    for node in view.nodes:
        yield folds.pop(node.fold, None) if node.fold else None, node


def _nested(view: View) -> Iterator[tuple[str, list[tuple[ViewFold | None, list[ViewNode]]]]]:
    """For each scope its boxes, those of a fold together."""
    folds = {fold.id: fold for fold in view.folds}
    for scope in dict.fromkeys(node.scope for node in view.nodes):
        nodes = [node for node in view.nodes if node.scope == scope]
        grouped = [(folds.get(fold or ""), list(members)) for fold, members in groupby(nodes, lambda n: n.fold)]
        yield scope, grouped


def _mermaid(view: View) -> Iterator[str]:
    number, repeats = _numbers(view), _repeats(view)
    yield from ("---", f'title: "{_quoted(view.model)}"', "---", "flowchart TD")
    for scope, parts in _nested(view):
        yield f"  subgraph {scope}_part [{scope}]"
        for outer, nodes in parts:
            if outer is not None:
                yield f'    subgraph {number[nodes[0].id]}_fold ["{_fold_title(outer)}"]'
            yield from (f'    {number[n.id]}["{_quoted("<br/>".join(_label(n, repeats[n.id])))}"]' for n in nodes)
            if outer is not None:
                yield "    end"
        yield "  end"
    yield from (f'  {number[e.source]} -->|"{_shape(e)}"| {number[e.target]}' for e in view.edges)


def _dot(view: View) -> Iterator[str]:
    number, repeats = _numbers(view), _repeats(view)
    yield from (f'digraph "{_quoted(view.model)}" {{', "  node [shape=box];")
    for scope, parts in _nested(view):
        yield f'  subgraph "cluster_{scope}" {{ label="{scope}";'
        for outer, nodes in parts:
            if outer is not None:
                yield f'    subgraph "cluster_{outer.id}" {{ label="{_fold_title(outer)}";'
            labels = {n.id: "\\n".join(_quoted(line) for line in _label(n, repeats[n.id])) for n in nodes}
            yield from (f'    {number[n.id]} [label="{labels[n.id]}"];' for n in nodes)
            if outer is not None:
                yield "    }"
        yield "  }"
    yield from (f'  {number[e.source]} -> {number[e.target]} [label="{_shape(e)}"];' for e in view.edges)
    yield "}"
