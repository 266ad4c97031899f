"""`LayerGraph`: a read-only DAG of layers with tensor names, shapes and dtypes on its edges."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from l4spec.layers.base import LayerSpec, Width
from l4spec.layers.declaration import Declaration, Parameter, Part, Shape
from l4spec.spec.resolve import ResolvedModel

if TYPE_CHECKING:
    import networkx as nx

Scope = Literal["text", "vision"]
Stream = Literal["text", "patch", "image"]
"""Kind of a node's tokens: text tokens, patches inside the tower, or image tokens between the tower and the text."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerNode:
    """One layer instance. Equal layers share one `declaration`.

    `id` is the prefix of its tensors' names (`text.layers.0.attention`), `role` its place in the block (`attention`,
    `ffn_norm`, `head` …), `label` the name its author gave the part, `layer` the block's index from 0. `module` is the
    module of multi-token prediction that it belongs to, from 0, in graphs that have them (`with_modules`).
    """

    id: str
    scope: Scope
    stream: Stream
    role: str
    label: str
    layer: int | None
    spec: LayerSpec
    width: Width
    declaration: Declaration
    module: int | None = None

    @property
    def kind(self) -> str:
        """Name of the layer's kind, as `kind:` has it in a spec."""
        return str(self.spec.kind)

    def part_of(self, parameter: Parameter) -> Part:
        """Part of the model that a parameter is counted for; all of a vision tower and its adapter is `vision`."""
        return "vision" if self.scope == "vision" and parameter.part != "projector" else parameter.part


class TensorType(NamedTuple):
    """Tensor on an edge: its name, symbolic shape and number format."""

    name: str
    shape: Shape
    dtype: str


class LayerEdge(NamedTuple):
    """An edge between two nodes by their ids; `port` counts the inputs of the target from 0."""

    source: str
    target: str
    port: int
    tensor: TensorType


class LayerGroup(NamedTuple):
    """All nodes that are the same layer in the same place of their block: one declaration and a count."""

    nodes: tuple[LayerNode, ...]

    @property
    def first(self) -> LayerNode:
        """The first node, which represents all of them."""
        return self.nodes[0]

    @property
    def count(self) -> int:  # type: ignore[override]  # tuple has a method of this name
        """Number of layers in the group."""
        return len(self.nodes)

    @property
    def declaration(self) -> Declaration:
        """The declaration, which is the same for every layer of the group."""
        return self.first.declaration


class LayerGraph:
    """A read-only DAG of layer nodes, in topological order, for one resolved model."""

    def __init__(self, model: ResolvedModel, nodes: tuple[LayerNode, ...], edges: tuple[LayerEdge, ...]) -> None:
        self.model = model
        self.nodes = nodes
        self.edges = edges
        self.results: dict[Any, Any] = {}
        """Cached results of functions of this graph (`l4spec.graph.kept`); they are not pickled with it."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "results": {}}

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model.name

    @cached_property
    def dag(self) -> "nx.MultiDiGraph[str]":
        """The frozen networkx graph, built on first access: planning does not need it, and it is slow to import."""
        import networkx as nx

        dag: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        dag.add_nodes_from((node.id, {"node": node}) for node in self.nodes)
        dag.add_edges_from((e.source, e.target, {"port": e.port, "tensor": e.tensor}) for e in self.edges)
        frozen: nx.MultiDiGraph[str] = nx.freeze(dag)
        return frozen

    @cached_property
    def by_id(self) -> dict[str, LayerNode]:
        """Every node by its id."""
        return {node.id: node for node in self.nodes}

    @cached_property
    def groups(self) -> tuple[LayerGroup, ...]:
        """Nodes grouped by (scope, role, label, declaration), in order of first appearance."""
        gathered: dict[tuple[str, str, str, int], list[LayerNode]] = {}
        for node in self.nodes:
            gathered.setdefault((node.scope, node.role, node.label, id(node.declaration)), []).append(node)
        return tuple(LayerGroup(tuple(nodes)) for nodes in gathered.values())

    @cached_property
    def num_layers(self) -> int:
        """Blocks of the language model."""
        return len(self.model.text.stack.blocks)

    @cached_property
    def can_cache(self) -> bool:
        """True if every attention layer of the text declares a cache, so that decoding can follow a prefill."""
        return all(node.declaration.cache for node in self.nodes if node.scope == "text" and node.role == "attention")

    @property
    def hidden_size(self) -> int:
        """Width of the language model's residual stream."""
        return self.model.text.stack.width.hidden_size

    @property
    def stream_width(self) -> int:
        """Elements per token passed from one block of the language model to the next: all residual streams together."""
        streams = self.model.text.streams
        return self.hidden_size * (1 if streams is None else streams.count)

    @property
    def max_seq_len(self) -> int:
        """Longest sequence that the model supports, in tokens."""
        return self.model.text.stack.width.max_seq_len

    @cached_property
    def num_experts(self) -> int:
        """Routed experts of the widest mixture; 0 in a dense model."""
        routed = (group.declaration.routed for group in self.groups)
        return max((experts.num_experts for experts in routed if experts is not None), default=0)

    def inputs_of(self, node_id: str) -> tuple[str, ...]:
        """Ids of the nodes whose outputs are this one's inputs, in the order of its ports."""
        return self._sources.get(node_id, ())

    @cached_property
    def _sources(self) -> dict[str, tuple[str, ...]]:
        sources: dict[str, tuple[str, ...]] = {}
        for edge in sorted(self.edges, key=lambda edge: edge.port):
            sources[edge.target] = (*sources.get(edge.target, ()), edge.source)
        return sources

    def parameters(self) -> Iterator[tuple[LayerNode, Parameter]]:
        """Every tensor of every node; its full name is `{node.id}.{parameter.name}`."""
        for node in self.nodes:
            for parameter in node.declaration.parameters:
                yield node, parameter

    def __repr__(self) -> str:
        return f"LayerGraph({self.name!r}, {len(self.nodes)} nodes, {self.num_layers} layers)"
