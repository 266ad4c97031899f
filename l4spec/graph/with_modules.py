"""The graph that a training with multi-token prediction has: a model's layers, and those of its modules after them."""

from dataclasses import replace

from l4spec.graph.build import MTP_SHARED, mtp_graph
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerEdge, LayerGraph


@kept_with(maxsize=1)
def with_modules(graph: LayerGraph) -> LayerGraph:
    """The graph with the layers that its modules have of their own.

    The same graph where none is declared, or all are there. They are named by `module_place` and have `module` set.
    Embedding and head are the model's nodes: the first norm of a module reads the embedding (of later tokens), the
    second one the model's final hidden state, or the output of the previous module's block.
    """
    declared, module = graph.model.text.mtp, mtp_graph(graph)
    if declared is None or module is None or any(node.module is not None for node in graph.nodes):
        return graph
    (hidden,) = graph.inputs_of("text.head")
    (last,) = module.inputs_of("text.norm")
    nodes, edges = list(graph.nodes), list(graph.edges)
    own = [node for node in module.nodes if node.role not in MTP_SHARED]
    by_target = {node.id: [edge for edge in module.edges if edge.target == node.id] for node in own}
    for index in range(declared.num_modules):
        names = {node.id: module_place(index, node.id) for node in own} | {"text.embedding": "text.embedding"}
        for node in own:
            layer = graph.num_layers + index
            nodes.append(replace(node, id=names[node.id], layer=layer, module=index))
            for edge in by_target[node.id]:
                edges.append(edge._replace(source=names[edge.source], target=names[node.id]))
            if node.role == "hidden_norm":
                edges.append(_given(graph, hidden, names[node.id]))
        hidden = names[last]
    return LayerGraph(graph.model, tuple(nodes), tuple(edges))


def module_place(index: int, node_id: str) -> str:
    """The id, in the model's graph, of a layer of module `index` (from 0) that is `node_id` in a graph of its own.

    `text.layers.0.attention` of the first module is `text.mtp.0.attention`.
    """
    return f"text.mtp.{index}.{node_id.removeprefix('text.').removeprefix('layers.0.')}"


def _given(graph: LayerGraph, source: str, target: str) -> LayerEdge:
    into_head = next(edge for edge in graph.edges if edge.target == "text.head")
    return LayerEdge(source, target, 0, into_head.tensor._replace(name=f"{source}.output"))
