"""`gemma3_text`: the language model of Gemma 3; five windows to one full layer, each with a rope base of its own."""

import math
from typing import Any

from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import SANDWICH, Naming
from l4spec.huggingface.rope import read_rope, write_rope
from l4spec.huggingface.text import (
    FULL,
    SLIDING,
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
    write_gqa,
    write_layer_types,
    write_text,
)
from l4spec.layers.attention.masks import SlidingWindowMask
from l4spec.layers.attention.positions import Rope
from l4spec.layers.geglu.spec import GeGLUSpec
from l4spec.layers.gqa.spec import GQASpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

_NAMES = {SLIDING: "sliding", FULL: "full"}
_USUAL_PATTERN = 6


def read(fields: Fields) -> dict[str, Any]:
    """Windows in the layers that `layer_types` names, or in all but every `sliding_window_pattern`-th."""
    fields.expect("hidden_activation", "gelu_pytorch_tanh")
    fields.expect("use_bidirectional_attention", None, False)
    count, size, pattern = (
        num_layers(fields),
        fields.size_or_none("sliding_window"),
        fields.size("sliding_window_pattern"),
    )
    fields.carry("sliding_window_pattern", "_sliding_window_pattern")
    usual = [SLIDING if (index + 1) % pattern else FULL for index in range(count)]
    types = read_layer_types(fields, usual, (FULL, SLIDING))
    if SLIDING in types and size is None:
        fields.problem("sliding_window", "missing, but there are layers of sliding_attention")
    if SLIDING not in types:
        fields.carry("sliding_window")
    if len(set(types)) == 1:
        fields.carry("rope_parameters")  # the rotation of the other kind of layer
    norm = {"kind": "rmsnorm", "eps": fields.number("rms_norm_eps"), "unit_offset": True}
    scale: Data = {"scale": fields.number("query_pre_attn_scalar") ** -0.5}
    cap = fields.number_or_none("attn_logit_softcapping")
    ropes, masks = _read_ropes(fields), {SLIDING: window(size), FULL: window(None)}
    parts: Data = {}
    for kind in sorted(set(types), reverse=True):
        more = {**scale, **both_biases(fields), "qk_norm": norm, **({} if cap is None else {"logit_softcap": cap})}
        parts[_NAMES[kind]] = read_gqa(fields, position=ropes[kind], mask=masks[kind], **more)
    parts["ffn"] = {"kind": "geglu", "intermediate_size": fields.size("intermediate_size"), "approximate": "tanh"}
    final = fields.number_or_none("final_logit_softcapping")
    text = read_text(
        fields,
        parts,
        [block(_NAMES[kind], "ffn", "sandwich") for kind in types],
        norm=norm,
        embedding_scale=math.sqrt(fields.size("hidden_size")),
        **({} if final is None else {"logit_softcap": final}),
    )
    return {"text": text}


def _read_ropes(fields: Fields) -> dict[str, Data]:
    """The rotation of each kind of layer: apart in `rope_parameters`, or as transformers 4 wrote them."""
    nested = fields.mapping("rope_parameters")
    if nested is not None and SLIDING in nested.data:
        ropes = {}
        for kind, theta in ((SLIDING, 10000.0), (FULL, 1000000.0)):
            inner = nested.mapping(kind) or Fields({}, {}, fields.file)
            holder = Fields({"rope_parameters": inner.data}, {"rope_theta": theta}, fields.file, nested.path)
            holder.problems = fields.problems
            ropes[kind] = read_rope(holder, "half")
        nested.finish((), {})
        return ropes
    local = {"kind": "rope", "theta": fields.number("rope_local_base_freq"), "layout": "half"}
    return {SLIDING: local, FULL: read_rope(fields, "half")}


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that Gemma3ForCausalLM reads."""
    blocks = model.text.stack.blocks
    attention = needed(blocks, GQASpec, "grouped-query attention")
    scale = attention.scale or attention.head_dim**-0.5
    size = local_size(blocks, SlidingWindowMask)
    shared = {name: value for name, value in write_gqa(attention, style).items() if not name.startswith("rope")}
    return {
        **write_text(model.text, style),
        **shared,
        "rope_parameters": _write_ropes(model),
        "attention_bias": attention.qkv_bias,
        "intermediate_size": needed(blocks, GeGLUSpec, "geglu layer").intermediate_size,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": attention.logit_softcap,
        "final_logit_softcapping": model.text.head.logit_softcap,
        **({} if size is None else {"sliding_window": size}),
        "layer_types": write_layer_types(blocks),
    }


def _write_ropes(model: ResolvedModel) -> Data:
    written: Data = {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in (SLIDING, FULL)}
    for item in model.text.stack.blocks:
        spec = attention_of(item)
        if spec is not None and isinstance(spec.position, Rope):
            kind = SLIDING if isinstance(spec.mask, SlidingWindowMask) else FULL
            written[kind] = write_rope(spec.position, "rope_parameters")["rope_parameters"]
    return written


FAMILY = Family(
    "gemma3_text",
    "Gemma3ForCausalLM",
    "models/gemma3/modeling_gemma3.py",
    read,
    write,
    Naming(SANDWICH),
    defaults={
        "num_key_value_heads": 4,
        "num_attention_heads": 8,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": _USUAL_PATTERN,
        "layer_types": None,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
)
