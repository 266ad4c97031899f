"""From a resolved model to its layer graph, with shapes checked across every edge."""

from dataclasses import dataclass, field
from functools import lru_cache

from l4spec.errors import Problem, SpecError
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerEdge, LayerGraph, LayerNode, Scope, Stream, TensorType
from l4spec.layers import declaration_of
from l4spec.layers.add.spec import AddSpec
from l4spec.layers.base import LayerSpec, Width
from l4spec.layers.declaration import Declaration, Shape
from l4spec.layers.linear.spec import LinearSpec
from l4spec.layers.merge.spec import MergeSpec
from l4spec.layers.residual_streams.spec import ResidualStreamsSpec, Step, Streams
from l4spec.spec.resolve import NamedPart, ResolvedBlock, ResolvedModel, ResolvedStack, ResolvedText, ResolvedVision

_LEADING_DIMS: dict[Stream, tuple[str, str]] = {
    "text": ("batch", "tokens"),
    "patch": ("tiles", "patches"),
    "image": ("tiles", "image_tokens"),
}


def build_graph(model: ResolvedModel) -> LayerGraph:
    """Lay the model out as a DAG: vision tower, adapter and projector into the text stream, blocks, norm, head.

    Raises SpecError when the shapes at the two ends of an edge differ.
    """
    builder = _Builder(model.text.dtype)
    image = _vision(builder, model.vision, model.text) if model.vision else None
    _text(builder, model.text, image)
    return LayerGraph(model, tuple(builder.nodes), tuple(builder.edges))


MTP_SHARED = ("embedding", "head")
"""Roles of the layers that a multi-token-prediction module has in common with its model."""


@kept_with(maxsize=1)
def mtp_graph(graph: LayerGraph) -> LayerGraph | None:
    """The layers of one multi-token-prediction module of the model, as a graph of its own; None if none is declared.

    logits = head(norm(block(projection [embedding_norm(embedding(ids)), hidden_norm(hidden)]))), where `hidden_norm`
    gets the model's final hidden state (or the output of the previous module's block), and `embedding` the ids one
    token further. The two halves have the order of the checkpoints' `eh_proj`. Embedding and head are the model's.
    """
    text = graph.model.text
    if text.mtp is None:
        return None
    stack = text.stack._replace(blocks=(text.mtp.block,))
    own = text._replace(stack=stack, position=None, final_norm=True, mtp=None)
    width, wide = stack.width, stack.width._replace(hidden_size=2 * stack.width.hidden_size)
    builder = _Builder(text.dtype)
    embedded = builder.add("embedding", text.embedding, width)
    embedded = builder.add("embedding_norm", stack.norm, width, embedded)
    hidden = builder.add("hidden_norm", stack.norm, width)
    stream = builder.add("joined", _concat(2), width, embedded, hidden)
    stream = builder.add("projection", LinearSpec(kind="linear", output_size=width.hidden_size), wide, stream)
    stream = _block(builder, stack, text.mtp.block, stream)
    stream = builder.add("norm", stack.norm, width, stream)
    builder.add("head", text.head, width, stream)
    model = graph.model._replace(name=f"{graph.name} MTP", text=own, vision=None)
    return LayerGraph(model, tuple(builder.nodes), tuple(builder.edges))


@dataclass(slots=True, eq=False, repr=False)
class _Builder:
    """Adds nodes and checked edges; `scope` and `stream` are those of the next node."""

    dtype: str
    nodes: list[LayerNode] = field(default_factory=list)
    edges: list[LayerEdge] = field(default_factory=list)
    scope: Scope = "text"
    stream: Stream = "text"
    declared: dict[tuple[int, Width], Declaration] = field(default_factory=dict)
    """Declarations by the identity of a spec, which a node keeps alive: comparing specs takes longer."""

    def add(
        self,
        path: str,
        spec: LayerSpec,
        width: Width,
        *inputs: LayerNode,
        label: str = "",
        layer: int | None = None,
        role: str = "",
    ) -> LayerNode:
        node = LayerNode(
            id=f"{self.scope}.{path}",
            scope=self.scope,
            stream=self.stream,
            role=role or path.rsplit(".", 1)[-1],
            label=label or str(spec.kind),
            layer=layer,
            spec=spec,
            width=width,
            declaration=self._declaration(spec, width),
        )
        self.nodes.append(node)
        for port, source in enumerate(inputs):
            self._connect(source, node, port)
        return node

    def _declaration(self, spec: LayerSpec, width: Width) -> Declaration:
        key = id(spec), width
        if key not in self.declared:
            self.declared[key] = declaration_of(spec, width)
        return self.declared[key]

    def _connect(self, source: LayerNode, target: LayerNode, port: int) -> None:
        given, expected = source.declaration.output, target.declaration.inputs[port]
        if len(given) != len(expected) or given[-1] != expected[-1]:
            message = f"gives a tensor {_show(given)}, but {target.id} takes {_show(expected)}"
            raise SpecError([Problem(message, path=source.id, hint="make the widths equal")])
        shape: Shape = (*_LEADING_DIMS[source.stream], given[-1])
        tensor = TensorType(f"{source.id}.output", shape, self.dtype)
        self.edges.append(LayerEdge(source.id, target.id, port, tensor))


def _show(shape: Shape) -> str:
    return f"[{', '.join(str(dim) for dim in shape)}]"


def _text(builder: _Builder, text: ResolvedText, image: LayerNode | None) -> None:
    builder.scope = builder.stream = "text"
    width = text.stack.width
    stream = builder.add("embedding", text.embedding, width)
    if image is not None:
        stream = builder.add("merge", _merge(image, width), width, stream, image)
    if text.position is not None:
        stream = builder.add("position", text.position, width, stream)
    if text.streams is None:
        num_vectors = 0 if image is None else _merge(image, width).num_vectors
        for block in text.stack.blocks:
            stream = _block(builder, text.stack, block, stream)
            if image is not None and block.index + 1 < num_vectors:
                merge, path = _merge(image, width, block.index + 1), f"layers.{block.index}.deepstack"
                stream = builder.add(path, merge, width, stream, image, layer=block.index)
    else:
        stream = builder.add("streams", _step("copy", text.streams), width, stream)
        for block in text.stack.blocks:
            stream = _serial(builder, text.stack, block, stream, text.streams)
        stream = builder.add("streams_join", _step("join", text.streams), width, stream)
    if text.final_norm:
        stream = builder.add("norm", text.stack.norm, width, stream)
    builder.add("head", text.head, width, stream)


def _vision(builder: _Builder, vision: ResolvedVision, text: ResolvedText) -> LayerNode:
    builder.scope, builder.stream = "vision", "patch"
    width = vision.stack.width
    stream = builder.add("patch_embedding", vision.patch_embedding, width)
    if vision.position is not None:
        stream = builder.add("position", vision.position, width, stream)
    if vision.pre_layernorm:
        stream = builder.add("pre_norm", vision.stack.norm, width, stream)
    narrow = Width(vision.adapter.output_size, text.stack.width.max_seq_len)
    added: list[LayerNode] = []
    for block in vision.stack.blocks:
        stream = _block(builder, vision.stack, block, stream)
        if vision.deepstack is not None and block.index in vision.deepstack.blocks:
            builder.stream, path = "image", f"deepstack.layers.{len(added)}"
            folded = builder.add(f"{path}.adapter", vision.deepstack.adapter, width, stream, role="deepstack_adapter")
            added.append(builder.add(f"{path}.projector", vision.projector, narrow, folded, role="deepstack_projector"))
            builder.stream = "patch"
    if vision.post_layernorm:
        stream = builder.add("post_norm", vision.stack.norm, width, stream)
    builder.stream = "image"
    stream = builder.add("adapter", vision.adapter, width, stream)
    stream = builder.add("projector", vision.projector, narrow, stream)
    if not added:
        return stream
    return builder.add("join", _concat(1 + len(added)), text.stack.width, stream, *added)


def _concat(num_inputs: int) -> LayerSpec:
    """Spec of a node that joins vectors, a kind that few models have."""
    from l4spec.layers.concat.spec import ConcatSpec

    return ConcatSpec(kind="concat", num_inputs=num_inputs)


def _merge(image: LayerNode, width: Width, index: int = 0) -> MergeSpec:
    """Spec of the node that merges image vectors into the text: into its embedding, or after one of its blocks."""
    vectors = image.declaration.output[-1]
    assert isinstance(vectors, int)
    return MergeSpec(kind="merge", num_vectors=max(1, vectors // width.hidden_size), index=index)


def _block(builder: _Builder, stack: ResolvedStack, block: ResolvedBlock, stream: LayerNode) -> LayerNode:
    if block.form == "parallel":
        return _parallel(builder, stack, block, stream)
    return _serial(builder, stack, block, stream)


def _serial(
    builder: _Builder, stack: ResolvedStack, block: ResolvedBlock, stream: LayerNode, streams: Streams | None = None
) -> LayerNode:
    parts = [(role, part) for role, part in (("attention", block.attention), ("ffn", block.ffn)) if part is not None]
    for role, part in parts:
        if streams is not None:
            stream = _between_streams(builder, stack, block, (role, part), stream, streams)
            continue
        is_last = role == parts[-1][0]
        stream = _sublayer(builder, stack, block, role, part, stream, scaled=block.output_scale and is_last)
    return stream


def _step(step: Step, streams: Streams) -> ResidualStreamsSpec:
    return ResidualStreamsSpec(kind="residual_streams", step=step, streams=streams)


def _between_streams(
    builder: _Builder,
    stack: ResolvedStack,
    block: ResolvedBlock,
    layer: tuple[str, NamedPart],
    stream: LayerNode,
    streams: Streams,
) -> LayerNode:
    """Nodes of a layer between streams: its weights, the weighted input, f with its norms, and the next streams."""
    role, part = layer
    width, prefix, index = stack.width, f"layers.{block.index}.{role}", block.index
    weights = builder.add(f"{prefix}_streams", _step("weigh", streams), width, stream, layer=index)
    x = builder.add(f"{prefix}_collapse", _step("collapse", streams), width, stream, weights, layer=index)
    x = _normed_layer(builder, stack, block, role, part, x)
    if block.form in ("sandwich", "output_norm"):
        x = builder.add(f"{prefix}_post_norm", stack.norm, width, x, layer=index)
    return builder.add(f"{prefix}_spread", _step("spread", streams), width, stream, x, weights, layer=index)


def _sublayer(
    builder: _Builder,
    stack: ResolvedStack,
    block: ResolvedBlock,
    role: str,
    part: NamedPart,
    stream: LayerNode,
    *,
    scaled: bool,
) -> LayerNode:
    """pre_norm: x + f(norm(x)); sandwich: x + norm(f(norm(x))); post_norm: norm(x + f(x)).

    output_norm: x + norm(f(x)). A second feed-forward layer beside f: x + norm(norm(f(norm(x))) + norm(g(norm(x)))).
    """
    width, prefix, residual = stack.width, f"layers.{block.index}.{role}", stream
    stream = _normed_layer(builder, stack, block, role, part, residual)
    if role == "ffn" and block.second_ffn is not None:
        second = f"layers.{block.index}.second_ffn"
        branches = [builder.add(f"{prefix}_inner_norm", stack.norm, width, stream, layer=block.index)]
        stream = _normed_layer(builder, stack, block, "second_ffn", block.second_ffn, residual)
        branches.append(builder.add(f"{second}_inner_norm", stack.norm, width, stream, layer=block.index))
        stream = builder.add(f"{prefix}_sum", _sum(), width, *branches, layer=block.index)
    if block.form in ("sandwich", "output_norm"):
        stream = builder.add(f"{prefix}_post_norm", stack.norm, width, stream, layer=block.index)
    stream = builder.add(f"{prefix}_add", _sum(scaled=scaled), width, residual, stream, layer=block.index)
    if block.form == "post_norm":
        stream = builder.add(f"{prefix}_norm", stack.norm, width, stream, layer=block.index)
    return stream


@lru_cache(maxsize=8)
def _sum(num_inputs: int = 2, *, scaled: bool = False) -> AddSpec:
    """Spec of a node that adds its inputs."""
    return AddSpec(kind="add", num_inputs=num_inputs, scaled=scaled)


def _normed_layer(
    builder: _Builder, stack: ResolvedStack, block: ResolvedBlock, place: str, part: NamedPart, stream: LayerNode
) -> LayerNode:
    """A layer after its norm, where the form has one and the layer none of its own."""
    path = f"layers.{block.index}.{place}"
    if block.form in ("pre_norm", "sandwich") and not part.spec.norms_input:
        stream = builder.add(f"{path}_norm", stack.norm, stack.width, stream, layer=block.index)
    role = "attention" if place == "attention" else "ffn"
    return builder.add(path, part.spec, stack.width, stream, label=part.name, layer=block.index, role=role)


def _given(part: NamedPart, stream: LayerNode, normed: LayerNode) -> LayerNode:
    return stream if part.spec.norms_input else normed


def _parallel(builder: _Builder, stack: ResolvedStack, block: ResolvedBlock, stream: LayerNode) -> LayerNode:
    """x + attention(norm(x)) + ffn(norm(x)), one norm for both."""
    assert block.attention is not None and block.ffn is not None
    width, prefix = stack.width, f"layers.{block.index}"
    normed = builder.add(f"{prefix}.input_norm", stack.norm, width, stream, layer=block.index)
    branches = [
        builder.add(
            f"{prefix}.{role}", part.spec, width, _given(part, stream, normed), label=part.name, layer=block.index
        )
        for role, part in (("attention", block.attention), ("ffn", block.ffn))
    ]
    add = _sum(num_inputs=3, scaled=block.output_scale)
    return builder.add(f"{prefix}.add", add, width, stream, *branches, layer=block.index)
