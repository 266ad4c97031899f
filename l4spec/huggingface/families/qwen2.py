"""`qwen2`: Qwen 2 and 2.5, with biases on queries, keys and values; and the parts that Qwen 3 shares."""

from typing import Any

from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import DECODER, Naming
from l4spec.huggingface.text import (
    FULL,
    SLIDING,
    Block,
    Data,
    block,
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
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

DEFAULTS = {
    "num_key_value_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


def read_window(fields: Fields) -> int | None:
    """The window of the layers that have one; a size beside `use_sliding_window: false` means nothing."""
    if fields.flag("use_sliding_window"):
        return fields.size_or_none("sliding_window")
    fields.carry("sliding_window")
    return None


def read_dense(fields: Fields, attention: Data) -> Data:
    """A dense model whose last layers may have a window, in one or two attention parts."""
    fields.expect("hidden_act", "silu")
    if fields.has("use_mrope"):
        fields.expect("use_mrope", False)
    fields.carry("use_mrope")
    size, count = read_window(fields), num_layers(fields)
    start = count if size is None else fields.count("max_window_layers")
    fields.carry("max_window_layers")
    types = read_layer_types(fields, [FULL if i < start else SLIDING for i in range(count)], (FULL, SLIDING))
    if SLIDING not in types:
        fields.carry("use_sliding_window", "sliding_window")
    elif size is None:
        fields.problem("layer_types", "names sliding_attention layers, but no sliding_window is in use")
    ffn: Data = {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size")}
    names = {FULL: "full", SLIDING: "sliding"} if len(set(types)) > 1 else dict.fromkeys(types, "attention")
    masks = {FULL: window(None), SLIDING: window(size)}
    parts = {name: {**attention, "mask": masks[kind]} for kind, name in names.items()}
    blocks: list[Block] = [block(names[kind], "ffn") for kind in types]
    return {"text": read_text(fields, {**parts, "ffn": ffn}, blocks)}


def write_dense(model: ResolvedModel, style: RopeStyle) -> Data:
    """The fields that Qwen's dense models share."""
    blocks = model.text.stack.blocks
    attention = needed(blocks, GQASpec, "grouped-query attention")
    size = local_size(blocks, SlidingWindowMask)
    return {
        **write_text(model.text, style),
        **write_gqa(attention, style, implied_by=model.text.stack.width.hidden_size),
        "intermediate_size": needed(blocks, SwiGLUSpec, "swiglu layer").intermediate_size,
        "hidden_act": "silu",
        "use_sliding_window": size is not None,
        **({} if size is None else {"sliding_window": size}),
        "layer_types": write_layer_types(blocks),
    }


def read(fields: Fields) -> dict[str, Any]:
    """Biases on q, k and v, always."""
    return read_dense(fields, read_gqa(fields, qkv_bias=True))


FAMILY = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    "models/qwen2/modeling_qwen2.py",
    read,
    write_dense,
    Naming(DECODER),
    defaults=DEFAULTS,
    fixed={"qkv_bias": (True,)},
)
