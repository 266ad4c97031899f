"""Peak memory of our module beyond weights and cache while it reads a prompt: the sum of every layer's allocations.

`planners.device.activations` counts the needs of a serving engine with fused kernels; this counts those of our eager
module on a CPU, where every intermediate result is a tensor, as a memory tracker sees them. Buffers inside an operator
are left out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from l4spec.graph.layer_graph import LayerGraph, LayerGroup, LayerNode
from l4spec.layers import eager_layer
from l4spec.layers.common.ledger import FLAG, INDEX, Ledger
from l4spec.layers.declaration import Work
from planners.counts.cost_sheet import PassTokens, work_of

Load = Mapping[str, Sequence[int]]


def activation_bytes(
    graph: LayerGraph, text: Work, *, num_tiles: int = 0, item_bytes: int = 2, expert_load: Load | None = None
) -> int:
    """The most bytes allocated while `text` (prompts from their start) and `num_tiles` tiles before it are read.

    `item_bytes` is the size of an activation's number. `expert_load` gives by node id how many tokens chose each
    expert; without it an expert may get all tokens, which is the most that is possible.
    """
    ledger = Ledger(item_bytes)
    run = _Run(graph, PassTokens(text, num_tiles), ledger, expert_load or {})
    positions = text.num_queries * INDEX
    ledger.touch(2 * positions)  # columns, then positions
    ledger.take(positions)
    if num_tiles:
        run.stack("vision", _ledger_of_places(graph, ledger))
    places = text.num_tokens * FLAG if num_tiles else 0
    if num_tiles and _turns_by_places(graph):
        ledger.has_places = True
        index = text.num_tokens * INDEX
        ledger.touch(places + 9 * index)  # tokens of images, those before, where in its image, three numbers and sums
        places += 3 * index
    run.stack("text", places)
    return ledger.peak


def _turns_by_places(graph: LayerGraph) -> bool:
    """True if a layer of the text rotates by time, row and column of image tokens."""
    mixing = (group.declaration.mixing for group in graph.groups if group.first.scope == "text")
    return any(rotation.over == "sections" for each in mixing if each is not None for rotation in each.rotations)


def _ledger_of_places(graph: LayerGraph, ledger: Ledger) -> int:
    """Make the positions and places of a tile's patches; gives their bytes without taking them."""
    vision = graph.model.vision
    assert vision is not None, "tiles need a model with vision"
    embedding = vision.patch_embedding
    side, patches, tokens = (count * INDEX for count in (embedding.grid, embedding.grid**2, embedding.num_tokens))
    with ledger.holding(side):
        ledger.touch(4 * patches)  # rows, columns, both together
        with ledger.holding(2 * INDEX):  # the class token's place
            ledger.touch(2 * patches + (2 * tokens if embedding.class_token != "none" else 0))
            ledger.touch(3 * tokens)
    return 3 * tokens


@dataclass(slots=True)
class _Run:
    """A walk over the graph as the module runs it: values live until their last reader, a block's inputs to its end."""

    graph: LayerGraph
    workload: PassTokens
    ledger: Ledger
    expert_load: Load
    sizes: dict[str, int] = field(default_factory=dict)
    readers: Counter[str] = field(default_factory=Counter)
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs = {node.id: self.graph.inputs_of(node.id) for node in self.graph.nodes}
        self.readers = Counter(name for names in self.inputs.values() for name in names)
        seeing = [node.id for node in self.graph.nodes if node.scope == "vision"]
        self.readers.update(seeing[-1:])  # the caller keeps it

    def stack(self, scope: str, index_bytes: int) -> None:
        """Run the nodes of a scope; tensors that its layers share live until its end, its result longer."""
        self.ledger.take(index_bytes)
        nodes = [node for node in self.graph.nodes if node.scope == scope]
        for _, run in groupby(nodes, key=lambda node: node.id if node.layer is None else str(node.layer)):
            self._segment(list(run))
        self.ledger.forget()
        self.ledger.free(index_bytes)

    def _segment(self, nodes: list[LayerNode]) -> None:
        own = {node.id for node in nodes}
        leaving: list[str] = []
        for node in nodes:
            self._node(node)
            for name in self.inputs[node.id]:
                self.readers[name] -= 1
                if not self.readers[name] and name in own:
                    self._drop(name)
                elif not self.readers[name]:
                    leaving.append(name)
        for name in leaving:
            self._drop(name)

    def _node(self, node: LayerNode) -> None:
        if not self.workload.num_tiles and self._sees_images(node):
            text = self.inputs[node.id][0]  # passes as it is
            self.sizes[node.id] = self.sizes.pop(text)
            return
        before = self.ledger.now - self.ledger.shared_bytes
        work = work_of(self.graph, LayerGroup((node,)), self.workload)
        if node.id in self.expert_load:
            work = work._replace(busiest_expert=max(self.expert_load[node.id]))
        allocate(node, work, self.ledger)
        self.sizes[node.id] = self.ledger.now - self.ledger.shared_bytes - before

    def _sees_images(self, node: LayerNode) -> bool:
        """True if a layer of the text takes the vision tower's output."""
        sources = (self.graph.by_id[name] for name in self.inputs[node.id])
        return node.scope == "text" and any(source.scope == "vision" for source in sources)

    def _drop(self, name: str) -> None:
        self.ledger.free(self.sizes.pop(name, 0))


def allocate(node: LayerNode, work: Work, ledger: Ledger) -> None:
    """Record one forward pass of a layer's module in the ledger; the memory that remains at the end is the output.

    For a kind without a ledger of its own: the buffers declared alive at its peak, then the output.
    """
    eager = eager_layer(node.kind)
    if eager is not None:
        eager.allocate(node.spec, node.width, work, ledger)
        return
    live = sum(b.elements * (b.bytes_per_element or ledger.item) for b in node.declaration.live(work))
    width = node.declaration.output[-1]
    assert isinstance(width, int)
    ledger.touch(live)
    ledger.take(work.num_tokens * width * ledger.item)
