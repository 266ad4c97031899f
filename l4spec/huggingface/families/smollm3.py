"""`smollm3`: SmolLM3; Llama without rotary positions in some layers, which may have a window."""

from typing import Any

from l4spec.huggingface.families.qwen2 import read_window
from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import DECODER, Naming
from l4spec.huggingface.rope import read_rope
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
    read_rotary_layers,
    read_text,
    window,
    write_gqa,
    write_layer_types,
    write_text,
)
from l4spec.layers.attention.masks import SlidingWindowMask
from l4spec.layers.attention.positions import Rope
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

_Kind = tuple[bool, str]
"""(The layer has rotary positions, its entry of `layer_types`.)"""
_NAMES: dict[_Kind, str] = {
    (True, FULL): "rotary",
    (False, FULL): "nope",
    (True, SLIDING): "rotary_sliding",
    (False, SLIDING): "nope_sliding",
}


def read(fields: Fields) -> dict[str, Any]:
    """Rotary positions where `no_rope_layers` is 1 (sic), windows by `layer_types`."""
    fields.expect("hidden_act", "silu")
    count = num_layers(fields)
    kinds = _attention_kinds(fields, count)
    if not any(rotary for rotary, _ in kinds):
        fields.carry("rope_theta", "rope_scaling", "rope_parameters")
    names = _NAMES if len(set(kinds)) > 1 else dict.fromkeys(kinds, "attention")
    size, more = read_window(fields), both_biases(fields)
    types = {kind for _, kind in kinds}
    if SLIDING not in types:
        fields.carry("use_sliding_window", "sliding_window")
    elif size is None:
        fields.problem("layer_types", "names sliding_attention layers, but no sliding_window is in use")
    parts: Data = {}
    for rotary, kind in dict.fromkeys(kinds):
        position = read_rope(fields, "half") if rotary else {"kind": "none"}
        mask = window(size if kind == SLIDING else None)
        parts[names[rotary, kind]] = read_gqa(fields, mask=mask, position=position, **more)
    parts["ffn"] = {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size")}
    return {"text": read_text(fields, parts, [block(names[kind], "ffn") for kind in kinds])}


def _attention_kinds(fields: Fields, count: int) -> list[_Kind]:
    given = fields.integers("no_rope_layers")
    if given is None:
        fields.carry("no_rope_layers")
    rotary = read_rotary_layers(fields, given, count)
    windowed = fields.flag("use_sliding_window") and fields.has("sliding_window")
    usual = [SLIDING if windowed and not turned else FULL for turned in rotary]
    types = read_layer_types(fields, usual, (FULL, SLIDING))
    return list(zip(rotary, types, strict=True))


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that SmolLM3ForCausalLM reads."""
    blocks = model.text.stack.blocks
    specs = [attention_of(item) for item in blocks]
    rotary = [spec is not None and isinstance(spec.position, Rope) for spec in specs]
    turned = next((spec for spec, yes in zip(specs, rotary, strict=True) if spec and yes), None)
    lead = turned or needed(blocks, GQASpec, "grouped-query attention")
    size = local_size(blocks, SlidingWindowMask)
    return {
        **write_text(model.text, style),
        **write_gqa(lead, style, implied_by=model.text.stack.width.hidden_size),
        "intermediate_size": needed(blocks, SwiGLUSpec, "swiglu layer").intermediate_size,
        "hidden_act": "silu",
        "attention_bias": lead.qkv_bias,
        "no_rope_layers": [int(yes) for yes in rotary],
        "layer_types": write_layer_types(blocks),
        "use_sliding_window": size is not None,
        **({} if size is None else {"sliding_window": size}),
    }


FAMILY = Family(
    "smollm3",
    "SmolLM3ForCausalLM",
    "models/smollm3/modeling_smollm3.py",
    read,
    write,
    Naming(DECODER),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_theta": 2000000.0,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "layer_types": None,
    },
    fixed={"mlp_bias": (False,)},
    ignorable=("max_window_layers",),
)
