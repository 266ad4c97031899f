"""Content of a model's picture: columns of layers, repeats folded, each kind expanded into its operations."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.quantization.published import published_name, scheme_for
from l4spec.report.fold import Fold, fold, runs
from l4spec.report.graph_views import blocks_of, look_of, operations_of
from l4spec.report.page import ranges
from l4spec.report.quantities import Figures, count, share, whole
from l4spec.spec.estimates import estimates_of
from l4spec.units import gib
from planners.counts.params import count_params
from planners.counts.weights import Scheme, scheme_of, stored_size, weigh

MOST_FOLDS = 24
"""Folds of a column that are drawn; layers after these, which no pattern orders, are summed up in one box."""


@dataclass(frozen=True, slots=True)
class LayerBox:
    """A layer: its label, sizes (parameters, active share, bytes), and operations."""

    title: str
    facts: str = ""
    operations: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True, slots=True)
class BlockBox:
    """One block of a run of equal ones: its layers, and (source, target) by index; source -1 is the block's input."""

    title: str
    layers: tuple[LayerBox, ...]
    flows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class FoldBox:
    """Blocks of a pattern, and its number of repeats."""

    title: str
    facts: str
    blocks: tuple[BlockBox, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """Boxes from top to bottom, with the shape of each one's output."""

    title: str
    boxes: tuple[LayerBox | FoldBox, ...]
    shapes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelPicture:
    """A model's columns: the text, and where there is one the vision tower with adapter and projector beside it.

    `joins` is the index of the text's box that image tokens enter.
    """

    name: str
    facts: str
    text: Column
    vision: Column | None
    joins: int | None


def picture_of(graph: LayerGraph, quantization: str | None = None) -> ModelPicture:
    """The picture of a model, its weights stored by a scheme, by default that of the published weights."""
    drawer = _Drawer(graph, quantization or published_name(graph.model.spec))
    vision = drawer.column("vision") if graph.model.vision is not None else None
    names = [node.role for node in graph.nodes if node.scope == "text" and node.layer is None]
    text = drawer.column("text")
    joins = names.index("merge") if vision is not None and "merge" in names else None
    return ModelPicture(graph.name, drawer.total(), text, vision, joins)


class _Drawer:
    def __init__(self, graph: LayerGraph, quantization: str) -> None:
        self.graph = graph
        self.scheme: Scheme = scheme_of(scheme_for(graph.model.spec, quantization))
        self.figures = Figures(bool(estimates_of(graph.model.spec).params))
        self.opened: dict[tuple[str, int], str] = {}
        self.bytes: dict[int, int] = {}
        self.shape = {edge.source: edge.tensor.shape for edge in graph.edges}

    def column(self, scope: str) -> Column:
        """The boxes of a scope in order: single layers, and folds of blocks in their place."""
        boxes: list[LayerBox | FoldBox] = []
        shapes: list[str] = []
        blocks = blocks_of(self.graph)[scope]
        last = next(reversed(blocks.values()), None)
        seen = False
        for node in self.graph.nodes:
            if node.scope != scope:
                continue
            if node.layer is None:
                boxes.append(self.layer(node))
                shapes.append(self._leaving(node))
            elif not seen and last is not None:
                seen = True
                folded = list(self._folds(scope, blocks))
                boxes += folded
                shapes += [self._leaving(last[-1])] * len(folded)
        return Column({"vision": "Vision", "text": "Text"}[scope], tuple(boxes), tuple(shapes))

    def _leaving(self, node: LayerNode) -> str:
        return _shape(self.shape.get(node.id, node.declaration.output))

    def _folds(self, scope: str, blocks: dict[int, list[LayerNode]]) -> Iterator[LayerBox | FoldBox]:
        looks = [look_of(nodes) for nodes in blocks.values()]
        folds = fold(looks)
        for one in folds[:MOST_FOLDS]:
            yield self._fold(scope, blocks, looks, one)
        rest = [index for one in folds[MOST_FOLDS:] for index in range(one.start, one.stop)]
        if rest:
            layers = list(blocks)
            nodes = [node for index in rest for node in blocks[layers[index]]]
            title = f"{whole(len(rest))} more layers in no pattern, of {len({looks[index] for index in rest})} kinds"
            yield LayerBox(title, self.facts(nodes), kind="more")

    def _fold(self, scope: str, blocks: dict[int, list[LayerNode]], looks: Sequence[Hashable], one: Fold) -> FoldBox:
        layers = list(blocks)
        drawn = []
        for run in runs(looks, one):
            copies = sorted(index for place in range(run.length) for index in one.copies(run.offset + place))
            where = f"layer{'' if len(copies) == 1 else 's'} {ranges(layers[index] for index in copies)}"
            drawn.append(self._block(blocks[layers[copies[0]]], run.length, where))
        nodes = [node for index in range(one.start, one.stop) for node in blocks[layers[index]]]
        if one.repeats == 1:
            return FoldBox("", self.facts(nodes), tuple(drawn))
        pattern = "this layer" if one.period == 1 else f"this pattern of {one.period} layers"
        return FoldBox(f"{whole(one.repeats)} × {pattern}", self.facts(nodes), tuple(drawn))

    def _block(self, nodes: list[LayerNode], length: int, where: str) -> BlockBox:
        index = {node.id: number for number, node in enumerate(nodes)}
        flows = tuple(
            sorted({(index.get(source, -1), index[n.id]) for n in nodes for source in self.graph.inputs_of(n.id)})
        )
        names = " + ".join(node.label for node in nodes if node.role in ("attention", "ffn"))
        title = f"{f'{length} × ' if length > 1 else ''}{names} · {where}"
        return BlockBox(title, tuple(self.layer(node, where) for node in nodes), flows)

    def layer(self, node: LayerNode, where: str = "") -> LayerBox:
        """A layer's box; one that was opened before names the place instead of its operations."""
        title = node.role if node.label in (node.role, node.kind) else f"{node.role}: {node.label}"
        title += f" ({node.kind})" if node.kind != node.role else ""
        if not node.declaration.parameters or "norm" in node.role:
            return LayerBox(title, self.facts([node]) if node.declaration.num_parameters else "", kind="small")
        key = node.label, id(node.declaration)
        before = self.opened.setdefault(key, where)
        if before != where:
            return LayerBox(title, self.facts([node]), (f"as in {before}",), self._color(node))
        lines = tuple(f"{one.name}  {one.detail}" for one in operations_of(node.declaration))
        return LayerBox(title, self.facts([node]), (*lines, *_remarks(node)), self._color(node))

    def _color(self, node: LayerNode) -> str:
        if node.role in ("attention", "ffn"):
            return "experts" if node.declaration.routed is not None else node.role
        return "other"

    def total(self) -> str:
        """Parameters of the model, those that a token of text uses, and bytes as stored."""
        params, mark = count_params(self.graph), self.figures.mark
        numbers = f"{mark}{count(params.total)} parameters · {mark}{count(params.active)} active per token"
        return f"{numbers} · {mark}{gib(weigh(self.graph, self.scheme).bytes)} {self.scheme.name}"

    def facts(self, nodes: Sequence[LayerNode]) -> str:
        """Parameters, the share of them that a token uses, and bytes as stored."""
        total = sum(node.declaration.num_parameters for node in nodes)
        active = sum(node.declaration.num_active_parameters for node in nodes)
        stored = sum(self._stored(node) for node in nodes)
        mark = self.figures.mark
        return f"{mark}{count(total)} · {share(active, total)} active · {mark}{gib(stored)} {self.scheme.name}"

    def _stored(self, node: LayerNode) -> int:
        sizes = self.bytes
        if id(node.declaration) not in sizes:
            sizes[id(node.declaration)] = sum(
                stored_size(self.graph, node, parameter, parameter.shape, self.scheme).total_bytes
                for parameter in node.declaration.parameters
                if not parameter.tied_to
            )
        return sizes[id(node.declaration)]


def _remarks(node: LayerNode) -> Iterator[str]:
    """Remarks of a box besides its operations: experts, reach of attention, cache entries."""
    routed, mixing = node.declaration.routed, node.declaration.mixing
    if routed is not None:
        yield f"{routed.num_per_token} of {whole(routed.num_experts)} routed experts per token"
    if mixing is not None and mixing.reach is not None:
        reach = mixing.reach
        yield "sees all earlier tokens" if reach.size is None else f"{reach.kind} of {whole(reach.size)} tokens"
    for entry in node.declaration.cache:
        tokens = entry.bound.tokens_per_row
        per = "per sequence" if entry.bound.is_state else "per token" if tokens == 1 else f"per {whole(tokens)} tokens"
        yield f"caches {entry.name} {[dim.size for dim in entry.dims]} {per}"


def _shape(shape: tuple[str | int, ...]) -> str:
    return f"[{', '.join(str(dim) for dim in shape)}]"


__all__ = ["BlockBox", "Column", "FoldBox", "LayerBox", "ModelPicture", "picture_of"]
