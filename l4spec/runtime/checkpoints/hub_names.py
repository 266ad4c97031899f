"""The names under which Hugging Face checkpoints store each model family: tables, and a function that reads them.

Sources: `modeling_*.py` of each family in huggingface/transformers, its `conversion_mapping.py` (the names that
`save_pretrained` writes are those of the published checkpoints), and the index files of published checkpoints.
Linear weights are [out, in] there as here. Llama 4's experts are [expert, in, out], gate before up.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Parameter
from l4spec.runtime.checkpoints.layout import (
    CheckpointLayout,
    StoredGroup,
    StoredTensor,
    TensorPiece,
    stored_parameters,
    whole,
)

NATIVE = "l4spec"
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_FFN = "text.layers.#.ffn."
Renames = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Naming:
    """How a family calls things. `#` stands for a layer's index; the longest prefix that fits wins.

    `renames` maps a prefix of our names to one of theirs, or to several of which the first is written. `each` names an
    expert's gate, up and down projection where every expert is stored alone; `fused_in_out` says how a stack of gate
    and up projections is oriented: [expert, in, 2 out] (True) or [expert, 2 out, in].
    """

    renames: Renames
    each: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    fused_in_out: bool = False
    fused_first: bool = False
    next_token_layers: bool = False
    """Whether published checkpoints hold layers behind the last one, for multi-token prediction (DeepSeek-V3)."""
    optional: tuple[str, ...] = field(default=(r"\.rotary_emb\.inv_freq$",))
    """Stored tensors that older versions wrote and nobody reads."""


_DECODER = {
    "text.embedding.": "model.embed_tokens.",
    "text.norm.": "model.norm.",
    "text.head.": "lm_head.",
    "text.layers.#.attention_norm.": "model.layers.#.input_layernorm.",
    "text.layers.#.attention.": "model.layers.#.self_attn.",
    "text.layers.#.ffn_norm.": "model.layers.#.post_attention_layernorm.",
    _FFN: "model.layers.#.mlp.",
}
_MIXTRAL: Renames = {
    **_DECODER,
    _FFN: ("model.layers.#.block_sparse_moe.", "model.layers.#.mlp."),
    f"{_FFN}router.": ("model.layers.#.block_sparse_moe.gate.", "model.layers.#.mlp.gate."),
}
_GEMMA2 = {
    **_DECODER,
    "text.layers.#.attention_post_norm.": "model.layers.#.post_attention_layernorm.",
    "text.layers.#.ffn_norm.": "model.layers.#.pre_feedforward_layernorm.",
    "text.layers.#.ffn_post_norm.": "model.layers.#.post_feedforward_layernorm.",
}
_QWEN_MOE = {**_DECODER, f"{_FFN}router.": "model.layers.#.mlp.gate."}
_DEEPSEEK = {
    **_QWEN_MOE,
    "text.layers.#.attention.q_a_norm.": "model.layers.#.self_attn.q_a_layernorm.",
    "text.layers.#.attention.kv_a_norm.": "model.layers.#.self_attn.kv_a_layernorm.",
    "text.layers.#.attention.kv_a_proj.": "model.layers.#.self_attn.kv_a_proj_with_mqa.",
    f"{_FFN}router.correction_bias": "model.layers.#.mlp.gate.e_score_correction_bias",
    f"{_FFN}shared_expert.": "model.layers.#.mlp.shared_experts.",
}
_LLAMA4_TEXT = {**_DECODER, _FFN: "model.layers.#.feed_forward."}
_VISION = {
    "vision.patch_embedding.proj.": "vision_model.patch_embedding.linear.",
    "vision.patch_embedding.class_token": "vision_model.class_embedding",
    "vision.position.weight": "vision_model.positional_embedding_vlm",
    "vision.pre_norm.": "vision_model.layernorm_pre.",
    "vision.post_norm.": "vision_model.layernorm_post.",
    "vision.layers.#.attention_norm.": "vision_model.model.layers.#.input_layernorm.",
    "vision.layers.#.attention.": "vision_model.model.layers.#.self_attn.",
    "vision.layers.#.ffn_norm.": "vision_model.model.layers.#.post_attention_layernorm.",
    "vision.layers.#.ffn.up_proj.": "vision_model.model.layers.#.mlp.fc1.",
    "vision.layers.#.ffn.down_proj.": "vision_model.model.layers.#.mlp.fc2.",
    "vision.adapter.": "vision_model.vision_adapter.mlp.",
    "vision.projector.proj.": "multi_modal_projector.linear_1.",
}
_LLAMA4 = {**{ours: f"language_model.{theirs}" for ours, theirs in _LLAMA4_TEXT.items()}, **_VISION}

NAMINGS: Mapping[str, Naming] = {
    "llama4": Naming(_LLAMA4, fused_in_out=True, fused_first=True),
    "llama4_text": Naming(_LLAMA4_TEXT, fused_in_out=True, fused_first=True),
    "llama": Naming(_DECODER),
    "mistral": Naming(_DECODER),
    "mixtral": Naming(_MIXTRAL, each=("w1", "w3", "w2")),
    "deepseek_v3": Naming(_DEEPSEEK, next_token_layers=True),
    "gemma2": Naming(_GEMMA2),
    "qwen2": Naming(_DECODER),
    "qwen3": Naming(_DECODER),
    "qwen3_moe": Naming(_QWEN_MOE),
}
"""By `model_type`, the families of `l4spec.huggingface`."""


def hub_layout(graph: LayerGraph, family: str) -> CheckpointLayout | None:
    """How `family` stores a model of this graph; None when it has no name for one of its tensors."""
    naming, groups = NAMINGS[family], []
    experts: dict[str, dict[str, Parameter]] = {}
    for full, parameter in stored_parameters(graph):
        if _is_stack(parameter):
            prefix, kind = full.rsplit(".", 1)
            experts.setdefault(prefix, {})[kind] = parameter
            continue
        names = _renamed(full, naming.renames)
        if not names:
            return None
        groups.append(StoredGroup(tuple((whole(name, full, parameter.shape),) for name in names)))
    for prefix, stacks in experts.items():
        group = _expert_group(prefix, stacks, naming)
        if group is None:
            return None
        groups.append(group)
    return CheckpointLayout(family, tuple(groups), partial(_is_ignored, _ignored_patterns(graph, naming)))


def native_layout(graph: LayerGraph) -> CheckpointLayout:
    """Our own names and shapes: for models that no family can say."""
    groups = (StoredGroup(((whole(full, full, parameter.shape),),)) for full, parameter in stored_parameters(graph))
    return CheckpointLayout(NATIVE, tuple(groups), partial(_is_ignored, ()))


def _is_stack(parameter: Parameter) -> bool:
    return parameter.role == "expert" and len(parameter.dims) == 3


def _renamed(full: str, renames: Renames) -> tuple[str, ...]:
    """The stored names of a tensor of ours, the one that is written first; none when the table has no prefix of it."""
    layer = _LAYER.search(full)
    pattern = full.replace(layer.group(), ".layers.#.", 1) if layer else full
    prefix = max((prefix for prefix in renames if pattern.startswith(prefix)), key=len, default=None)
    if prefix is None:
        return ()
    theirs = renames[prefix]
    rest = pattern.removeprefix(prefix)
    index = layer.group(1) if layer else ""
    return tuple((name + rest).replace("#", index) for name in ((theirs,) if isinstance(theirs, str) else theirs))


def _expert_group(prefix: str, stacks: Mapping[str, Parameter], naming: Naming) -> StoredGroup | None:
    prefixes = _renamed(prefix, naming.renames)
    if not prefixes or set(stacks) != {"gate_proj", "up_proj", "down_proj"}:
        return None
    each = [_each_expert(prefix, stored, stacks, naming.each) for stored in prefixes]
    fused = [_fused_experts(prefix, stored, stacks, naming.fused_in_out) for stored in prefixes]
    return StoredGroup((*fused, *each) if naming.fused_first else (*each, *fused))


def _each_expert(
    prefix: str, stored: str, stacks: Mapping[str, Parameter], names: tuple[str, str, str]
) -> tuple[StoredTensor, ...]:
    """`{stored}.{expert}.{name}.weight` [out, in] for every expert and projection."""
    pieces = []
    for kind, name in zip(("gate_proj", "up_proj", "down_proj"), names, strict=True):
        num_experts, out, into = stacks[kind].shape
        for expert in range(num_experts):
            piece = TensorPiece(f"{prefix}.{kind}", ((0, expert, expert + 1),))
            tensor = f"{stored}.{expert}.{name}.weight"
            pieces.append(StoredTensor(tensor, (out, into), (piece,), view=(1, out, into)))
    return tuple(pieces)


def _fused_experts(prefix: str, stored: str, stacks: Mapping[str, Parameter], in_out: bool) -> tuple[StoredTensor, ...]:
    """`{stored}.gate_up_proj`, the gate's half first, and `{stored}.down_proj`, each for all experts together."""
    num_experts, ffn, hidden = stacks["gate_proj"].shape
    dim = 2 if in_out else 1
    halves = (("gate_proj", 0), ("up_proj", ffn))
    gate_up = tuple(
        TensorPiece(f"{prefix}.{kind}", stored_region=((dim, start, start + ffn),), transposed=in_out)
        for kind, start in halves
    )
    down = (TensorPiece(f"{prefix}.down_proj", transposed=in_out),)
    shape = (num_experts, hidden, 2 * ffn) if in_out else (num_experts, 2 * ffn, hidden)
    down_shape = (num_experts, ffn, hidden) if in_out else (num_experts, hidden, ffn)
    return (
        StoredTensor(f"{stored}.gate_up_proj", shape, gate_up),
        StoredTensor(f"{stored}.down_proj", down_shape, down),
    )


def _ignored_patterns(graph: LayerGraph, naming: Naming) -> tuple[re.Pattern[str], ...]:
    patterns = list(naming.optional)
    if graph.model.text.head.tied:
        patterns.append(rf"^(language_model\.)?{re.escape('lm_head.weight')}$")
    if naming.next_token_layers:
        patterns.append(rf"^model\.layers\.{graph.num_layers}\.")
    return tuple(re.compile(pattern) for pattern in patterns)


def _is_ignored(patterns: tuple[re.Pattern[str], ...], name: str) -> bool:
    return any(pattern.search(name) for pattern in patterns)
