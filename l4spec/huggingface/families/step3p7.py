"""`step3p7`: Step-3.7-Flash; gated heads, windows with query heads and a rotation of their own, its tower left out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family, first
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.multimodal import language_model
from l4spec.huggingface.naming import FFN, GATED, Naming, inside
from l4spec.huggingface.rope import read_rope, write_rope
from l4spec.huggingface.text import (
    FULL,
    SLIDING,
    Data,
    attention_of,
    block,
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
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

_NAMES = {SLIDING: "sliding", FULL: "full"}
_FIRST_SPARSE = 3
"""Layers before this one are dense by default."""
_BY_LAYER = ("layer_types", "mlp_layer_types", "rope_theta", "partial_rotary_factors")
_AT_THE_TOP = ("architectures", "model_type", "transformers_version", "quantization_config", "dtype", "torch_dtype")
_WINDOW_HEADS = ("num_sliding_attention_heads", "attention_other_setting")
_EXPERTS = ExpertFields(
    num="n_routed_experts",
    shared=1,
    shared_width="share_expert_dim",
    scaling="moe_router_scaling_factor",
    router={"score": "sigmoid", "correction_bias": True},
)


def read(fields: Fields) -> dict[str, Any]:
    """Windows by `layer_types`, mixtures by `mlp_layer_types`, `moe_layers_enum` or `first_k_dense_replace`."""
    fields.expect("hidden_act", "silu")
    count = num_layers(fields)
    _without_drafts(fields, count)
    types = read_layer_types(fields, [FULL] * count, (FULL, SLIDING))
    size = fields.size_or_none("sliding_window")
    if SLIDING not in types:
        fields.carry("sliding_window", *_WINDOW_HEADS)
    elif size is None:
        fields.problem("sliding_window", "missing, but there are layers of sliding_attention")
    ffns = _feed_forwards(fields, count)
    parts = _attentions(fields, types, size)
    if "dense" in ffns:
        parts["dense"] = {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size")}
    if "sparse" in ffns:
        parts["moe"] = _EXPERTS.read(fields)
    fields.carry("intermediate_size", *_EXPERTS.fields())
    _expect_no_clamps(fields)
    names = {"dense": "dense", "sparse": "moe"}
    blocks = [block(_NAMES[kind], names[ffn]) for kind, ffn in zip(types, ffns, strict=True)]
    return {"text": read_text(fields, parts, blocks, norm=_norm(fields))}


def _norm(fields: Fields) -> Data:
    return {"kind": "rmsnorm", "eps": fields.number("rms_norm_eps"), "unit_offset": True}


def _without_drafts(fields: Fields, count: int) -> None:
    """Lists of layers end with those of multi-token prediction, which are outside of the model."""
    drafts = fields.count("num_nextn_predict_layers") if fields.has("num_nextn_predict_layers") else 0
    fields.carry("num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types")
    lists = {name: fields.data[name] for name in _BY_LAYER if isinstance(fields.data.get(name), list)}
    cut = {name: items[:count] for name, items in lists.items() if drafts and len(items) == count + drafts}
    fields.data = {**fields.data, **cut}


def _feed_forwards(fields: Fields, count: int) -> list[str]:
    """`dense` or `sparse` for each layer."""
    fields.carry("moe_layers_enum", "first_k_dense_replace")
    start = fields.count("first_k_dense_replace") if fields.has("first_k_dense_replace") else _FIRST_SPARSE
    sparse = set(range(start, count))
    if fields.has("moe_layers_enum"):
        items = fields.data["moe_layers_enum"]
        texts = [str(item).strip() for item in (items.split(",") if isinstance(items, str) else items or ())]
        if not all(text.isdecimal() and len(text) < 9 for text in texts if text):
            fields.problem("moe_layers_enum", "expected indices of layers")
        sparse = {int(text) for text in texts if text.isdecimal() and len(text) < 9}
    usual = ["sparse" if index in sparse else "dense" for index in range(count)]
    words = fields.words("mlp_layer_types", ("dense", "sparse"))
    if words is not None and len(words) != count:
        fields.problem("mlp_layer_types", f"expected {count} entries, one per layer, found {len(words)}")
        return usual
    return usual if words is None else words


def _attentions(fields: Fields, types: list[str], size: int | None) -> Data:
    heads = {FULL: fields.size("num_attention_heads"), SLIDING: _window_heads(fields)}
    ropes = _read_ropes(fields, types)
    bias = {"qkv_bias": True, "output_bias": True} if fields.flag("attention_bias") else {}
    if bias:
        fields.problem("attention_bias", "the gate of this attention has no bias, where projections have", "set false")
    parts: Data = {}
    for kind in sorted(set(types), reverse=True):
        mask = window(size if kind == SLIDING else None)
        part = read_gqa(fields, position=ropes[kind], qk_norm=_norm(fields), output_gate="headwise", mask=mask)
        parts[_NAMES[kind]] = {**part, "num_heads": heads[kind]}
        fields.expect_derived("query_pre_attn_scalar", part["head_dim"])
    return parts


def _window_heads(fields: Fields) -> int:
    """Query heads in windows: their own field, the older mapping, or those of the other layers."""
    own, older = fields.size_or_none("num_sliding_attention_heads"), fields.mapping("attention_other_setting")
    usual = fields.size("num_attention_heads")
    if older is not None:
        older.expect("attention_type", SLIDING)
        for name, other in (("num_attention_groups", "num_key_value_heads"), ("head_dim", "head_dim")):
            older.expect_derived(name, fields.size(other))
        older.expect_derived("true_head_dim", fields.size("head_dim"))
        usual = older.size("num_attention_heads")
        older.finish((), {})
        fields.carry("attention_other_setting")
    return own or usual


def _read_ropes(fields: Fields, types: list[str]) -> dict[str, Data]:
    """The rotation of each kind of layer: by kind in `rope_parameters`, or of the first layer of the kind in lists."""
    nested, head_dim = fields.mapping("rope_parameters"), fields.size("head_dim")
    scaling = fields.data.get("rope_scaling")
    ropes: dict[str, Data] = {}
    for kind in set(types):
        inner = nested.mapping(kind) if nested is not None else None
        data: Data = {"rope_theta": _of_layer(fields, "rope_theta", types, kind, 10000.0)}
        data["partial_rotary_factor"] = _of_layer(fields, "partial_rotary_factors", types, kind, 1.0)
        if kind == FULL and isinstance(scaling, dict):
            data["rope_scaling"] = scaling
        if inner is not None:
            data = {"rope_parameters": inner.data}
        data["max_position_embeddings"] = fields.data.get("max_position_embeddings")
        holder = Fields(data, {"rope_theta": 10000.0}, fields.file, fields.path, fields.problems)
        ropes[kind] = read_rope(holder, "half", head_dim=head_dim)
    fields.carry("rope_theta", "partial_rotary_factors", "rope_scaling", "yarn_only_types")
    if nested is not None:
        nested.read.update((FULL, SLIDING))
        nested.finish((), {})
    return ropes


def _of_layer(fields: Fields, name: str, types: list[str], kind: str, usual: float) -> Any:
    """A value of a layer of this kind, from a list with one for each layer, which must agree, or from one for all."""
    value = fields.data.get(name)
    if not isinstance(value, list):
        return usual if value is None else value
    if len(value) != len(types):
        fields.problem(name, f"expected {len(types)} entries, one per layer, found {len(value)}")
        return usual
    own = [item for item, other in zip(value, types, strict=True) if other == kind]
    if any(item != own[0] for item in own):
        fields.problem(name, f"differs among layers of {kind}, which share one rotation")
    return own[0]


def _expect_no_clamps(fields: Fields) -> None:
    for name in ("swiglu_limits", "swiglu_limits_shared"):
        limits = fields.data.get(name)
        fields.carry(name)
        if isinstance(limits, list) and any(limits):
            fields.problem(name, "clamps of a gate after its activation are not read", "null leaves them out")


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that Step3p7TextConfig reads."""
    blocks = model.text.stack.blocks
    specs = [spec for spec in map(attention_of, blocks) if spec is not None]
    moe, dense = first(blocks, MoESpec), first(blocks, SwiGLUSpec)
    size = local_size(blocks, SlidingWindowMask)
    return {
        **write_text(model.text, style),
        **_write_attention(specs),
        **({} if size is None else {"sliding_window": size}),
        "layer_types": write_layer_types(blocks),
        "mlp_layer_types": [
            "sparse" if item.ffn and isinstance(item.ffn.spec, MoESpec) else "dense" for item in blocks
        ],
        **({} if dense is None else {"intermediate_size": dense.intermediate_size}),
        **({} if moe is None else _EXPERTS.write(moe, blocks)),
        "hidden_act": "silu",
    }


def _write_attention(specs: list[GQASpec]) -> Data:
    kinds = {SLIDING if isinstance(spec.mask, SlidingWindowMask) else FULL: spec for spec in reversed(specs)}
    some = kinds.get(FULL) or kinds.get(SLIDING)
    if some is None:
        return {}
    ropes = {
        kind: write_rope(spec.position, "rope_parameters", spec.head_dim)["rope_parameters"]
        for kind, spec in kinds.items()
        if isinstance(spec.position, Rope)
    }
    own = {"num_sliding_attention_heads": kinds[SLIDING].num_heads} if SLIDING in kinds else {}
    return {
        "num_attention_heads": some.num_heads,
        "num_key_value_heads": some.num_kv_heads,
        "head_dim": some.head_dim,
        **own,
        "rope_parameters": ropes,
        "attention_bias": some.qkv_bias,
    }


_PUBLISHED: Mapping[str, str] = {
    **GATED,
    "text.layers.#.attention.gate_proj.": "model.layers.#.self_attn.g_proj.",
    f"{FFN}router.": "model.layers.#.moe.gate.",
    f"{FFN}router.correction_bias": "model.layers.#.moe.router_bias",
    f"{FFN}experts": "model.layers.#.moe",
    f"{FFN}shared_expert.": "model.layers.#.share_expert.",
}
_IN_TRANSFORMERS = inside(
    "model.language_model.",
    {
        **_PUBLISHED,
        f"{FFN}router.": "model.layers.#.mlp.gate.",
        f"{FFN}router.correction_bias": "model.layers.#.mlp.gate.e_score_correction_bias",
        f"{FFN}experts": "model.layers.#.mlp.experts",
        f"{FFN}shared_expert.": "model.layers.#.mlp.shared_experts.",
    },
)
TEXT = Family(
    "step3p5",
    "Step3p7ForConditionalGeneration",
    "models/step3p7/modeling_step3p7.py",
    read,
    write,
    Naming(
        {ours: (theirs, str(_IN_TRANSFORMERS[ours])) for ours, theirs in _PUBLISHED.items()},
        stacked=True,
        next_token_layers=3,
        optional=(r"^vit_large_projector\.",),
    ),
    defaults={
        "vocab_size": 128815,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "sliding_window": None,
        "num_sliding_attention_heads": None,
        "layer_types": None,
        "mlp_layer_types": None,
        "num_experts_per_tok": 8,
        "n_routed_experts": 288,
        "moe_intermediate_size": 1280,
        "share_expert_dim": 1280,
        "moe_router_scaling_factor": 1.0,
    },
    aliases={
        "num_local_experts": "n_routed_experts",
        "moe_num_experts": "n_routed_experts",
        "num_experts": "n_routed_experts",
        "num_attention_groups": "num_key_value_heads",
        "moe_top_k": "num_experts_per_tok",
        "share_expert_dims": "share_expert_dim",
        "num_mtp_layers": "num_nextn_predict_layers",
    },
    fixed={
        "n_shared_experts": (1,),
        "scoring_func": ("sigmoid",),
        "moe_router_activation": ("sigmoid",),
        "use_moe_router_bias": (True,),
        "use_moe": (True,),
        "moe_every_n_layer": (1,),
        "norm_expert_weight": (True,),
        "use_head_wise_attn_gate": (True,),
        "use_qk_norm": (True,),
        "zero_centered": (True,),
        "gating": (True, "per-head"),
        "mlp_bias": (False,),
        "use_bidirectional_attention": (False,),
        "use_rope_layers": ([],),
        "sink": (False,),
    },
    ignorable=("need_fp32_gate", "per_layer_config"),
)
_NESTED = language_model(
    "step3p7",
    "Step3p7ForConditionalGeneration",
    TEXT.source,
    {"step3p5": TEXT},
    prefix="",
    ignorable=("projector_bias", "image_token_len", "patch_token_len", "understand_projector_stride"),
)


def read_either(fields: Fields) -> dict[str, Any]:
    """The language model of `text_config`, or of a config with its fields at the top."""
    if fields.has("text_config") or not fields.has("hidden_size"):
        return _NESTED.read(fields)
    text = {name: value for name, value in fields.data.items() if name not in _AT_THE_TOP}
    fields.data = {name: value for name, value in fields.data.items() if name in _AT_THE_TOP} | {"text_config": text}
    section = _NESTED.read(fields)
    for problems in (fields.problems, fields.consequences):
        problems[:] = [problem._replace(path=problem.path.removeprefix("text_config.")) for problem in problems]
    if SLIDING in (text.get("layer_types") or ()) and not text.keys() & {*_WINDOW_HEADS}:
        fields.note("windows have as many query heads as other layers, as transformers reads a config that names none")
    return section


FAMILY = replace(_NESTED, read=read_either)
