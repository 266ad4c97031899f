"""`llama4`: Llama 4 with its vision tower; the language model is `llama4_text`."""

from typing import Any

from l4spec.errors import Problem, SpecError
from l4spec.huggingface.families import llama4_text
from l4spec.huggingface.family import Family
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import Naming, inside
from l4spec.huggingface.passthrough_fields import finish_common
from l4spec.huggingface.rope import read_rope
from l4spec.huggingface.text import DTYPES, Data
from l4spec.layers.attention.positions import Rope2d
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.mlp.spec import MLPSpec
from l4spec.layers.pixel_shuffle_mlp.spec import PixelShuffleMLPSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel, ResolvedVision

_LAYERNORM_EPS = 1e-5
"""Fixed in the reference, independent of norm_eps."""
MAX_TILES = 16
"""Of the released processors; configs lack it."""
_TEXT, _VISION = "text_config", "vision_config"


def read(fields: Fields) -> dict[str, Any]:
    """Language model from `text_config`, vision from `vision_config`."""
    text = fields.mapping(_TEXT, llama4_text.DEFAULTS)
    vision = fields.mapping(_VISION, _VISION_DEFAULTS)
    if text is None:
        fields.problem(_TEXT, "missing field")
        fields.read.update(fields.data)
        return {}
    _share_dtype(fields, text)
    text.expect("model_type", "llama4_text")
    spec = llama4_text.read(text)
    fields.expect("tie_word_embeddings", False, spec["text"]["tie_embeddings"])
    fields.carry("tie_word_embeddings")
    if vision is None:
        fields.note("the config has no vision_config, so this is the language model alone")
    else:
        spec["vision"] = _read_vision(vision, spec["text"]["hidden_size"])
        fields.carried[_VISION] = finish_common(vision, ())
    fields.carried[_TEXT] = finish_common(text, llama4_text.IGNORABLE)
    return spec


def _share_dtype(fields: Fields, text: Fields) -> None:
    """A number format written at the top alone holds for the language model too."""
    for name in ("dtype", "torch_dtype"):
        fields.read.add(name)
        if fields.has(name) and not (text.has("dtype") or text.has("torch_dtype")):
            text.data = {**text.data, name: fields.data[name]}


def _read_vision(fields: Fields, text_width: int) -> Data:
    fields.expect("model_type", "llama4_vision_model")
    fields.expect("hidden_act", "gelu")
    fields.expect("norm_eps", _LAYERNORM_EPS)
    fields.expect("multi_modal_projector_bias", False)
    fields.expect("projector_dropout", 0.0, 0)
    fields.expect("vision_feature_select_strategy", "default")
    if fields.has("vision_feature_layer"):
        fields.expect("vision_feature_layer", -1)
    fields.carry("vision_feature_layer", "vision_feature_select_strategy", "projector_dropout", "dtype", "torch_dtype")
    hidden, ffn = fields.size("hidden_size"), fields.size("intermediate_size")
    adapter = _read_adapter(fields, hidden, ffn)
    return {
        "image_size": _side(fields, "image_size"),
        "patch_size": _side(fields, "patch_size"),
        "num_channels": fields.size("num_channels"),
        "max_tiles": MAX_TILES,
        "global_tile": True,
        "tower": {
            "hidden_size": hidden,
            "norm": {"kind": "layernorm", "eps": _LAYERNORM_EPS},
            "class_token": "last",
            "learned_positions": True,
            "pre_layernorm": True,
            "post_layernorm": True,
            "parts": {"attention": _read_attention(fields, hidden), "mlp": {"kind": "mlp", "intermediate_size": ffn}},
            "layers": [{"attention": "attention", "ffn": "mlp", "repeat": fields.size("num_hidden_layers")}],
        },
        "adapter": adapter,
        "projector": {"kind": "linear", "output_size": text_width},
    }


def _read_attention(fields: Fields, hidden: int) -> Data:
    heads, rope = fields.size("num_attention_heads"), read_rope(fields, "interleaved")
    if hidden % heads:
        fields.consequence("num_attention_heads", f"expected a divisor of hidden_size ({hidden}), found {heads}")
    if "scaling" in rope:
        fields.problem("rope_scaling", "the vision tower has no scaled positions")
    return {
        "kind": "gqa",
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": max(hidden // heads, 1),
        "qkv_bias": True,
        "output_bias": True,
        "mask": {"kind": "none"},
        "position": {"kind": "rope_2d", "theta": rope["theta"]},
    }


def _read_adapter(fields: Fields, hidden: int, ffn: int) -> Data:
    ratio, width = fields.number("pixel_shuffle_ratio"), fields.size("projector_input_dim")
    for name in ("projector_output_dim", "vision_output_dim"):
        if (width_of_field := fields.size(name)) != width:
            fields.consequence(name, f"expected projector_input_dim ({width}), found {width_of_field}")
    if round(hidden / ratio**2) != ffn:
        fields.consequence("intermediate_size", f"expected hidden_size / pixel_shuffle_ratio^2 ({hidden / ratio**2:g})")
    return {
        "kind": "pixel_shuffle_mlp",
        "pixel_shuffle_ratio": ratio,
        "intermediate_size": width,
        "output_size": width,
    }


def _side(fields: Fields, name: str) -> int:
    """A side in pixels; configs may write a square as a pair."""
    value = fields.raw(name)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        fields.data = {**fields.data, name: value[0]}
    return fields.size(name)


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that Llama4ForConditionalGeneration reads."""
    dtype = "dtype" if style == "rope_parameters" else "torch_dtype"
    config: Data = {_TEXT: {"model_type": "llama4_text", **llama4_text.write(model, style)}}
    if model.vision is not None:
        config[_VISION] = {"model_type": "llama4_vision_model", **_write_vision(model.vision, style)}
    return {**config, "tie_word_embeddings": model.text.head.tied, dtype: DTYPES[model.text.dtype]}


def _write_vision(vision: ResolvedVision, style: RopeStyle) -> Data:
    if not isinstance(vision.adapter, PixelShuffleMLPSpec):
        message = f"expected pixel_shuffle_mlp, found {vision.adapter.kind}"
        raise SpecError([Problem(message, path="vision.adapter.kind")])
    specs = [part.spec for item in vision.stack.blocks for part in (item.attention, item.ffn) if part]
    attention = next((spec for spec in specs if isinstance(spec, GQASpec)), None)
    mlp = next((spec for spec in specs if isinstance(spec, MLPSpec)), None)
    theta = attention.position.theta if attention and isinstance(attention.position, Rope2d) else 10000.0
    new: Data = {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    return {
        "hidden_size": vision.stack.width.hidden_size,
        "num_hidden_layers": len(vision.stack.blocks),
        "num_attention_heads": attention.num_heads if attention else 1,
        "intermediate_size": mlp.intermediate_size if mlp else 1,
        "num_channels": vision.patch_embedding.num_channels,
        "image_size": vision.patch_embedding.image_size,
        "patch_size": vision.patch_embedding.patch_size,
        "pixel_shuffle_ratio": vision.adapter.pixel_shuffle_ratio,
        "projector_input_dim": vision.adapter.intermediate_size,
        "projector_output_dim": vision.adapter.output_size,
        "vision_output_dim": vision.adapter.output_size,
        "multi_modal_projector_bias": False,
        "norm_eps": _LAYERNORM_EPS,
        "hidden_act": "gelu",
        **(new if style == "rope_parameters" else {"rope_theta": theta}),
    }


_VISION_DEFAULTS = {
    "model_type": "llama4_vision_model",
    "hidden_size": 768,
    "hidden_act": "gelu",
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "num_channels": 3,
    "intermediate_size": 5632,
    "vision_output_dim": 7680,
    "image_size": 448,
    "patch_size": 14,
    "norm_eps": 1e-5,
    "vision_feature_select_strategy": "default",
    "pixel_shuffle_ratio": 0.5,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "multi_modal_projector_bias": False,
    "projector_dropout": 0.0,
    "rope_theta": 10000.0,
}
_NAMES = {
    **inside("language_model.", llama4_text.NAMES),
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
FAMILY = Family(
    "llama4",
    "Llama4ForConditionalGeneration",
    "models/llama4/modeling_llama4.py",
    read,
    write,
    Naming(_NAMES, fused_in_out=True, fused_first=True),
    defaults={"tie_word_embeddings": False},
    ignorable=(
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
        "boi_token_id",
        "eoi_token_id",
        "image_token_id",
    ),
)
