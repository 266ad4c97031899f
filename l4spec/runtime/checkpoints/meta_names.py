"""The layout of Meta's own Llama 4 checkpoints, `consolidated.00.pth` … one file per model-parallel rank.

Source: meta-llama/llama-models, `models/checkpoint.py` (which tensors are cut along which dim) and the load hooks in
`models/llama4/{model,moe,ffn}.py` and `vision/*.py` (both spellings of a name). Llama 4 calls a gate `w_in` or `w1`, an
up projection `w_swiglu` or `w3`, a down projection `w_out` or `w2`. Dense weights are [out, in] as ours; experts are
[expert, in, out], published as the two leading dims folded; the router is [in, expert]. Queries and keys need no
permutation, for the reference rotates interleaved pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.layers.declaration import Parameter
from l4spec.runtime.checkpoints.layout import (
    CheckpointLayout,
    StoredGroup,
    StoredTensor,
    TensorPiece,
    stored_parameters,
)

META = "meta"
Shape = tuple[int, ...]
_UNREAD = ("._extra_state", "rope.freqs", "freq_cis", "expert_activation_DE", "gate_stats_3E")
"""Ends of names that the reference's load hooks drop."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """A tensor stored by itself: its names, the first of them published, and the dim of ours that ranks share."""

    names: tuple[str, ...]
    cut: int | None = None


_TOP = {
    "text.embedding.weight": _Rule(("tok_embeddings.weight",), 0),
    "text.norm.weight": _Rule(("norm.weight",)),
    "text.head.weight": _Rule(("output.weight",), 0),
    "vision.patch_embedding.proj.weight": _Rule(("vision_embeddings.vision_encoder.conv1._linear.weight",), 0),
    "vision.patch_embedding.class_token": _Rule(("vision_embeddings.vision_encoder.class_embedding",)),
    "vision.position.weight": _Rule(("vision_embeddings.vision_encoder.positional_embedding_vlm",)),
    "vision.adapter.fc1.weight": _Rule(("vision_embeddings.vision_adapter.mlp.c_fc.weight",), 0),
    "vision.adapter.fc2.weight": _Rule(("vision_embeddings.vision_adapter.mlp.c_proj.weight",), 1),
    "vision.projector.proj.weight": _Rule(("vision_projection.weight",), 0),
    **{
        f"vision.{ours}.{kind}": _Rule((f"vision_embeddings.vision_encoder.{theirs}.{kind}",))
        for ours, theirs in (("pre_norm", "ln_pre"), ("post_norm", "ln_post"))
        for kind in ("weight", "bias")
    },
}
_TEXT_LAYER = {
    "attention_norm.weight": _Rule(("attention.wqkv.layer_norm_weight", "attention_norm.weight")),
    "attention.o_proj.weight": _Rule(("attention.wo.weight",), 1),
    "ffn_norm.weight": _Rule(("feed_forward.norm.weight", "feed_forward.mlp.layer_norm_weight", "ffn_norm.weight")),
    "ffn.down_proj.weight": _Rule(("feed_forward.mlp.fc2_weight", "feed_forward.w2.weight"), 1),
    "ffn.shared_expert.gate_proj.weight": _Rule(
        ("feed_forward.w_in_shared_FD.weight", "feed_forward.shared_expert.w1.weight"), 0
    ),
    "ffn.shared_expert.up_proj.weight": _Rule(
        ("feed_forward.w_swiglu_FD.weight", "feed_forward.shared_expert.w3.weight"), 0
    ),
    "ffn.shared_expert.down_proj.weight": _Rule(
        ("feed_forward.w_out_shared_DF.weight", "feed_forward.shared_expert.w2.weight"), 1
    ),
}
_JOINED = (
    (
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attention.wqkv.weight",
        "attention.w{}.weight",
        "qkv",
    ),
    (("ffn.gate_proj", "ffn.up_proj"), "feed_forward.mlp.fc1_weight", "feed_forward.w{}.weight", "13"),
)
"""Weights that a rank stores concatenated by rows: our names, the joined name, single names, and their letters."""
_EXPERTS = {
    "gate_proj": ("moe_w_in_eD_F", "w1", 1),
    "up_proj": ("moe_w_swiglu_eD_F", "w3", 1),
    "down_proj": ("moe_w_out_eF_D", "w2", 2),
}
"""Our stack, its published name, its name in the module, and the dim of ours that ranks share."""
_VISION_LAYER = {
    **{
        f"attention.{name}_proj.{kind}": _Rule((f"attn.w{name}.{kind}",), 0)
        for name in "qkv"
        for kind in ("weight", "bias")
    },
    "attention.o_proj.weight": _Rule(("attn.wo.weight",), 1),
    "attention.o_proj.bias": _Rule(("attn.wo.bias",)),
    "ffn.up_proj.weight": _Rule(("mlp.c_fc.weight",), 0),
    "ffn.up_proj.bias": _Rule(("mlp.c_fc.bias",), 0),
    "ffn.down_proj.weight": _Rule(("mlp.c_proj.weight",), 1),
    "ffn.down_proj.bias": _Rule(("mlp.c_proj.bias",)),
    **{f"attention_norm.{kind}": _Rule((f"ln_1.{kind}",)) for kind in ("weight", "bias")},
    **{f"ffn_norm.{kind}": _Rule((f"ln_2.{kind}",)) for kind in ("weight", "bias")},
}


def meta_layout(graph: LayerGraph, num_ranks: int) -> CheckpointLayout | None:
    """Meta's layout of a model of this graph over `num_ranks` files; None if it has no name for one of its tensors.

    If `num_ranks` does not divide a dim, the shapes differ from the files', which the check of the files reports by
    name.
    """
    shapes = {full: parameter.shape for full, parameter in stored_parameters(graph)}
    groups: list[StoredGroup] = []
    for layer in _layers(graph):
        groups += _joined_groups(layer, shapes, num_ranks)
    known = {piece.tensor for group in groups for way in group.alternatives for t in way for piece in t.pieces}
    for node, parameter in graph.parameters():
        full = f"{node.id}.{parameter.name}"
        if parameter.tied_to or full in known:
            continue
        group = _single_group(node, parameter, full, num_ranks)
        if group is None:
            return None
        groups.append(group)
    return CheckpointLayout(META, tuple(groups), _is_unread)


def _is_unread(name: str) -> bool:
    return name.endswith(_UNREAD)


def _layers(graph: LayerGraph) -> Iterator[int]:
    return iter(range(graph.num_layers))


def _joined_groups(layer: int, shapes: dict[str, Shape], num_ranks: int) -> Iterator[StoredGroup]:
    for ours, joined, single, letters in _JOINED:
        names = [f"text.layers.{layer}.{name}.weight" for name in ours]
        if all(name in shapes for name in names):
            prefix = f"layers.{layer}."
            together = _stacked(prefix + joined, [(name, shapes[name]) for name in names], num_ranks)
            alone = [
                stored
                for name, letter in zip(names, letters, strict=True)
                for stored in _cut(prefix + single.format(letter), name, shapes[name], 0, num_ranks)
            ]
            yield StoredGroup((tuple(together), tuple(alone)))


def _single_group(node: LayerNode, parameter: Parameter, full: str, num_ranks: int) -> StoredGroup | None:
    """The ways to store a tensor that is not joined with others."""
    stack = _EXPERTS.get(parameter.name.removeprefix("experts."))
    if parameter.role == "expert" and stack is not None:
        return _experts(node, full, parameter.shape, stack, num_ranks)
    if parameter.role == "router" and parameter.name == "router.weight":
        num_experts, hidden = parameter.shape
        stored = StoredTensor(
            f"layers.{node.layer}.feed_forward.router_DE", (hidden, num_experts), (TensorPiece(full, transposed=True),)
        )
        return StoredGroup((tuple(_copies(stored, num_ranks)),))
    rule, prefix = _rule_of(node, parameter, full)
    if rule is None:
        return None
    ways = (tuple(_cut(prefix + name, full, parameter.shape, rule.cut, num_ranks)) for name in rule.names)
    return StoredGroup(tuple(ways))


def _rule_of(node: LayerNode, parameter: Parameter, full: str) -> tuple[_Rule | None, str]:
    if node.layer is None:
        return _TOP.get(full), ""
    inner = f"{node.role}.{parameter.name}"
    if node.scope == "vision":
        return _VISION_LAYER.get(inner), f"vision_embeddings.vision_encoder.transformer.resblocks.{node.layer}."
    return _TEXT_LAYER.get(inner), f"layers.{node.layer}."


def _cut(name: str, tensor: str, shape: Shape, dim: int | None, num_ranks: int) -> Iterator[StoredTensor]:
    """A tensor cut along `dim`, a part for each rank; the same copy on all ranks without a dim."""
    if dim is None:
        yield from _copies(StoredTensor(name, shape, (TensorPiece(tensor),)), num_ranks)
        return
    width = shape[dim] // num_ranks
    part = (*shape[:dim], width, *shape[dim + 1 :])
    for rank in range(num_ranks):
        yield StoredTensor(name, part, (TensorPiece(tensor, ((dim, rank * width, (rank + 1) * width),)),), rank=rank)


def _copies(stored: StoredTensor, num_ranks: int) -> Iterator[StoredTensor]:
    yield stored
    yield from (replace(stored, pieces=(), rank=rank) for rank in range(1, num_ranks))


def _stacked(name: str, parts: list[tuple[str, Shape]], num_ranks: int) -> Iterator[StoredTensor]:
    """Each rank's rows of several weights [out, in], one weight below the other."""
    for rank in range(num_ranks):
        pieces, start = [], 0
        for tensor, shape in parts:
            rows = shape[0] // num_ranks
            pieces.append(TensorPiece(tensor, ((0, rank * rows, (rank + 1) * rows),), ((0, start, start + rows),)))
            start += rows
        yield StoredTensor(name, (start, parts[0][1][1]), tuple(pieces), rank=rank)


def _experts(node: LayerNode, full: str, shape: Shape, stack: tuple[str, str, int], num_ranks: int) -> StoredGroup:
    """[expert, in, out] by rank: published with the leading dims folded, in the module with all three."""
    published, module, dim = stack
    prefix = f"layers.{node.layer}.feed_forward.experts."
    width = shape[dim] // num_ranks
    part = tuple(width if index == dim else size for index, size in enumerate(shape))
    view = (part[0], part[2], part[1])
    folded, unfolded = [], []
    for rank in range(num_ranks):
        piece = TensorPiece(full, ((dim, rank * width, (rank + 1) * width),), transposed=True)
        stored = StoredTensor(prefix + published, (view[0] * view[1], view[2]), (piece,), view=view, rank=rank)
        folded.append(stored)
        unfolded.append(StoredTensor(prefix + module, view, (piece,), rank=rank))
    return StoredGroup((tuple(folded), tuple(unfolded)))
