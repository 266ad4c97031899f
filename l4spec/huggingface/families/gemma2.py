"""`gemma2`: sandwich norms with 1 + weight, soft-caps, a window in every second layer, scaled and tied embeddings."""

import math
from typing import Any

from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import SANDWICH, Naming
from l4spec.huggingface.text import (
    FULL,
    SLIDING,
    block,
    both_biases,
    local_size,
    num_layers,
    read_gqa,
    read_layer_types,
    read_text,
    window,
    write_gqa,
    write_layer_types,
    write_text,
)
from l4spec.layers.attention.masks import SlidingWindowMask
from l4spec.layers.geglu.spec import GeGLUSpec
from l4spec.layers.gqa.spec import GQASpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

_NAMES = {SLIDING: "sliding", FULL: "full"}


def read(fields: Fields) -> dict[str, Any]:
    """Windows in the layers that `layer_types` names, or in the even ones."""
    fields.expect("hidden_activation", "gelu_pytorch_tanh")
    fields.expect("use_bidirectional_attention", None, False)
    fields.carry("hidden_act")
    count, size = num_layers(fields), fields.size_or_none("sliding_window")
    types = read_layer_types(fields, [FULL if i % 2 else SLIDING for i in range(count)], (FULL, SLIDING))
    if SLIDING not in types:
        fields.carry("sliding_window")
    elif size is None:
        fields.problem("sliding_window", "missing, but there are layers of sliding_attention")
    attention = read_gqa(fields, **_scores(fields), **both_biases(fields))
    masks = {SLIDING: window(size), FULL: window(None)}
    parts = {_NAMES[kind]: {**attention, "mask": masks[kind]} for kind in sorted(set(types), reverse=True)}
    parts["ffn"] = {"kind": "geglu", "intermediate_size": fields.size("intermediate_size"), "approximate": "tanh"}
    cap = fields.number_or_none("final_logit_softcapping")
    text = read_text(
        fields,
        parts,
        [block(_NAMES[kind], "ffn", "sandwich") for kind in types],
        norm={"kind": "rmsnorm", "eps": fields.number("rms_norm_eps"), "unit_offset": True},
        embedding_scale=math.sqrt(fields.size("hidden_size")),
        **({} if cap is None else {"logit_softcap": cap}),
    )
    return {"text": text}


def _scores(fields: Fields) -> dict[str, Any]:
    cap = fields.number_or_none("attn_logit_softcapping")
    scale = {"scale": fields.number("query_pre_attn_scalar") ** -0.5}
    return scale if cap is None else {**scale, "logit_softcap": cap}


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that Gemma2ForCausalLM reads."""
    blocks = model.text.stack.blocks
    attention = needed(blocks, GQASpec, "grouped-query attention")
    scale = attention.scale or attention.head_dim**-0.5
    size = local_size(blocks, SlidingWindowMask)
    return {
        **write_text(model.text, style),
        **write_gqa(attention, style),
        "attention_bias": attention.qkv_bias,
        "intermediate_size": needed(blocks, GeGLUSpec, "geglu layer").intermediate_size,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": attention.logit_softcap,
        "final_logit_softcapping": model.text.head.logit_softcap,
        **({} if size is None else {"sliding_window": size}),
        "layer_types": write_layer_types(blocks),
    }


FAMILY = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    "models/gemma2/modeling_gemma2.py",
    read,
    write,
    Naming(SANDWICH),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "use_bidirectional_attention": None,
    },
)
