"""`gemma4_text`: the language model of Gemma 4; values from keys in full layers, experts beside a dense layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import SANDWICH, Naming
from l4spec.huggingface.rope import read_rope, write_rope
from l4spec.huggingface.text import (
    FULL,
    SLIDING,
    Block,
    Data,
    attention_of,
    block,
    both_biases,
    local_size,
    num_layers,
    read_gqa,
    read_layer_types,
    read_text,
    window,
    write_layer_types,
    write_text,
)
from l4spec.layers.attention.masks import SlidingWindowMask
from l4spec.layers.attention.positions import Rope
from l4spec.layers.geglu.spec import GeGLUSpec
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedBlock, ResolvedModel

_NAMES = {SLIDING: "sliding", FULL: "full"}
_USUAL_PATTERN = 6
_ROPES: Mapping[str, Data] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}
_EXPERTS = ExpertFields(per_token="top_k_experts", others={"activation": "gelu_tanh"})
_LACKING = {
    "hidden_size_per_layer_input": "per-layer embeddings (Gemma 4 E2B and E4B) are not read",
    "num_kv_shared_layers": "layers that attend to keys and values of an earlier layer (Gemma 4 E2B, E4B) are not read",
}


def read(fields: Fields) -> dict[str, Any]:
    """Windows in the layers that `layer_types` names, or in all but every sixth; the last one is always full."""
    fields.expect("hidden_activation", "gelu_pytorch_tanh")
    fields.expect("use_bidirectional_attention", None, "vision")  # image tokens see each other both ways
    fields.carry("use_bidirectional_attention", "vocab_size_per_layer_input", "use_double_wide_mlp")
    for name, lacking in _LACKING.items():
        if fields.count(name):
            fields.problem(name, lacking)
    types = _types(fields)
    norm = {"kind": "rmsnorm", "eps": fields.number("rms_norm_eps")}
    parts = {_NAMES[kind]: part for kind, part in _attentions(fields, types, norm).items()}
    parts["dense"] = {"kind": "geglu", "intermediate_size": fields.size("intermediate_size"), "approximate": "tanh"}
    item: Data = {"form": "sandwich", "output_scale": True}
    if fields.flag("enable_moe_block"):
        parts["moe"] = _mixture(fields)
        item = {"second_ffn": "moe", **item}
    else:
        fields.carry(*_EXPERTS.fields())
    cap = fields.number_or_none("final_logit_softcapping")
    blocks: list[Block] = [(*block(_NAMES[kind], "dense"), *item.items()) for kind in types]
    text = read_text(
        fields,
        parts,
        blocks,
        norm=norm,
        embedding_scale=math.sqrt(fields.size("hidden_size")),
        **({} if cap is None else {"logit_softcap": cap}),
    )
    return {"text": text}


def _types(fields: Fields) -> list[str]:
    count = num_layers(fields)
    usual = [SLIDING if (index + 1) % _USUAL_PATTERN else FULL for index in range(count)]
    types = read_layer_types(fields, usual, (FULL, SLIDING))
    if types[-1] != FULL:
        fields.note("the last layer is one of full attention, as transformers makes it whatever layer_types says")
        types = [*types[:-1], FULL]
    if SLIDING not in types:
        fields.carry("rope_parameters")
    return types


def _mixture(fields: Fields) -> Data:
    """Experts beside the dense layer: they read the stream by a norm of their own, their router by another."""
    norm, part = {"eps": fields.number("rms_norm_eps")}, _EXPERTS.read(fields)
    return {**part, "router": {**part["router"], "norm": norm, "expert_scale": True}, "input_norm": norm}


def _attentions(fields: Fields, types: list[str], norm: Data) -> dict[str, Data]:
    """The attention of each kind of layer that there is; windows first."""
    ropes, size, heads = _read_ropes(fields), fields.size("sliding_window"), _heads(fields, types)
    more: Data = {"scale": 1.0, **both_biases(fields), "qk_norm": norm, "value_norm": {"eps": norm["eps"]}}
    if SLIDING not in types:
        fields.carry("sliding_window", "rope_parameters")
    kinds: dict[str, Data] = {}
    for kind in sorted(set(types), reverse=True):
        part = read_gqa(fields, position=ropes[kind], mask=window(size if kind == SLIDING else None), **more)
        kinds[kind] = {**part, **heads[kind]}
    if fields.flag("attention_k_eq_v"):
        kinds[FULL]["values_from_keys"] = True
    return kinds


def _heads(fields: Fields, types: list[str]) -> dict[str, Data]:
    """Key heads and their width by kind of layer: as published, or of each layer as transformers 5 writes them."""
    usual = {"num_kv_heads": fields.size("num_key_value_heads"), "head_dim": fields.size("head_dim")}
    written, own = fields.mapping("per_layer_config"), fields.size_or_none("num_global_key_value_heads")
    whole = {"num_kv_heads": usual["num_kv_heads"], "head_dim": fields.size("global_head_dim")}
    if own is not None and fields.flag("attention_k_eq_v"):
        whole["num_kv_heads"] = own
    if SLIDING not in types:
        fields.carry("head_dim", "num_key_value_heads")
    fields.carry("num_global_key_value_heads")
    if written is None:
        return {SLIDING: usual, FULL: whole}
    by_layer = dict.fromkeys(range(len(types)), usual)
    for place in written.data:
        layer, index = written.mapping(place), int(place) if place.isdecimal() and len(place) < 9 else -1
        if layer is None or index not in by_layer:
            written.problem(place, "expected the index of a layer and what differs there")
            continue
        names = {"num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
        by_layer[index] = {ours: layer.size(name) if layer.has(name) else usual[ours] for ours, name in names.items()}
        layer.finish((), {})
    return _of_kinds(fields, types, by_layer)


def _of_kinds(fields: Fields, types: list[str], by_layer: dict[int, Data]) -> dict[str, Data]:
    """Form of the layers of each kind, which must all be equal."""
    kinds: dict[str, Data] = {}
    for index, kind in enumerate(types):
        if by_layer[index] != kinds.setdefault(kind, by_layer[index]):
            fields.problem("per_layer_config", f"differs among layers of {kind}, which share one form here")
            break
    return {kind: kinds.get(kind, by_layer[len(types) - 1]) for kind in types}


def _read_ropes(fields: Fields) -> dict[str, Data]:
    """The rotation of each kind of layer, apart in `rope_parameters`."""
    nested, ropes = fields.mapping("rope_parameters"), {}
    for kind, usual in _ROPES.items():
        own = nested.mapping(kind) if nested is not None else None
        parameters = usual if own is None else own.data
        path = f"{fields.path}.rope_parameters".lstrip(".")
        holder = Fields({"rope_parameters": parameters}, {"rope_theta": usual["rope_theta"]}, fields.file, path)
        holder.problems = fields.problems
        ropes[kind] = read_rope(holder, "half")
    if nested is not None:
        nested.finish((), {})
    return ropes


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that Gemma4ForCausalLM reads."""
    blocks = model.text.stack.blocks
    specs = [spec for spec in map(attention_of, blocks) if spec is not None]
    attention = needed(blocks, GQASpec, "grouped-query attention")
    kinds = {SLIDING if isinstance(spec.mask, SlidingWindowMask) else FULL: spec for spec in reversed(specs)}
    usual, whole = kinds.get(SLIDING, attention), kinds.get(FULL, attention)
    turned = {kind: spec.position for kind, spec in kinds.items() if isinstance(spec.position, Rope)}
    ropes = {kind: write_rope(rope, "rope_parameters")["rope_parameters"] for kind, rope in turned.items()}
    size, moe = local_size(blocks, SlidingWindowMask), _mixture_of(blocks)
    return {
        **write_text(model.text, style),
        "num_attention_heads": usual.num_heads,
        "num_key_value_heads": usual.num_kv_heads,
        "head_dim": usual.head_dim,
        "global_head_dim": whole.head_dim,
        **_write_whole(usual, whole, write_layer_types(blocks)),
        "attention_k_eq_v": whole.values_from_keys,
        "attention_bias": attention.qkv_bias,
        "rope_parameters": {**_ROPES, **ropes},
        **({} if size is None else {"sliding_window": size}),
        "layer_types": write_layer_types(blocks),
        "intermediate_size": needed(blocks, GeGLUSpec, "geglu layer").intermediate_size,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": moe is not None,
        **({} if moe is None else _EXPERTS.write(moe, blocks)),
        "final_logit_softcapping": model.text.head.logit_softcap,
    }


def _write_whole(usual: GQASpec, whole: GQASpec, types: list[str]) -> Data:
    """Key heads of full layers: in their own field where it acts, else layer by layer."""
    if whole.values_from_keys:
        return {"num_global_key_value_heads": whole.num_kv_heads}
    if whole.num_kv_heads == usual.num_kv_heads:
        return {}
    own = {"num_key_value_heads": whole.num_kv_heads, "head_dim": whole.head_dim}
    return {"per_layer_config": {str(index): own for index, kind in enumerate(types) if kind == FULL}}


def _mixture_of(blocks: Sequence[ResolvedBlock]) -> MoESpec | None:
    """The mixture beside the dense layers."""
    specs = (item.second_ffn.spec for item in blocks if item.second_ffn is not None)
    return next((spec for spec in specs if isinstance(spec, MoESpec)), None)


_SECOND = "text.layers.#.second_ffn."
FAMILY = Family(
    "gemma4_text",
    "Gemma4ForCausalLM",
    "models/gemma4/modeling_gemma4.py",
    read,
    write,
    Naming(
        {
            **SANDWICH,
            "text.layers.#.ffn_inner_norm.": "model.layers.#.post_feedforward_layernorm_1.",
            "text.layers.#.second_ffn_inner_norm.": "model.layers.#.post_feedforward_layernorm_2.",
            f"{_SECOND}input_norm.": "model.layers.#.pre_feedforward_layernorm_2.",
            f"{_SECOND}experts": "model.layers.#.experts",
            f"{_SECOND}router.weight": "model.layers.#.router.proj.weight",
            f"{_SECOND}router.norm.weight": "model.layers.#.router.scale",
            f"{_SECOND}router.expert_scale": "model.layers.#.router.per_expert_scale",
            "text.layers.#.ffn_add.factor": "model.layers.#.layer_scalar",
        },
        fused_first=True,
    ),
    defaults={
        "vocab_size": 262144,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
        "num_global_key_value_heads": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "sliding_window": 512,
        "layer_types": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": None,
        "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": 0,
        "attention_k_eq_v": False,
        "enable_moe_block": False,
    },
)
