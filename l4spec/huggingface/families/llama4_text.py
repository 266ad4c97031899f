"""`llama4_text`: the language model of Llama 4, sparse (Scout, Maverick) or dense (Llama Guard 4, MobileLLM-R1)."""

from typing import Any

from l4spec.huggingface.family import Family, first, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import DECODER, FFN, Naming
from l4spec.huggingface.rope import read_rope
from l4spec.huggingface.text import (
    CAUSAL,
    FULL,
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
    write_gqa,
    write_text,
)
from l4spec.layers.attention.masks import ChunkedMask
from l4spec.layers.attention.positions import Rope
from l4spec.layers.gqa.spec import GQASpec, L2Norm
from l4spec.layers.moe.spec import MoESpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedBlock, ResolvedModel

CHUNKED = "chunked_attention"
_Kind = tuple[bool, bool]
"""(The layer has rotary positions, its mask is chunked.)"""
_NAMES: dict[_Kind, str] = {
    (True, True): "local",
    (False, False): "global",
    (True, False): "rotary",
    (False, True): "local_nope",
}


def read(fields: Fields) -> dict[str, Any]:
    """Rotary positions where `no_rope_layers` is 1 (sic), chunks by `layer_types`, experts in `moe_layers`."""
    fields.expect("hidden_act", "silu")
    fields.expect("router_jitter_noise", 0.0, 0)
    count = num_layers(fields)
    kinds, sparse = _attention_kinds(fields, count), _sparse_layers(fields, count)
    names = _NAMES if len(set(kinds)) > 1 else dict.fromkeys(kinds, "attention")
    parts: Data = {names[kind]: _attention(fields, *kind) for kind in dict.fromkeys(kinds)}
    _carry_unused(fields, kinds, sparse)
    if not all(sparse):
        parts["dense"] = {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size_mlp")}
    if any(sparse):
        parts["moe"] = _moe(fields)
    blocks = [block(names[kind], "moe" if moe else "dense") for kind, moe in zip(kinds, sparse, strict=True)]
    return {"text": read_text(fields, parts, blocks)}


def _attention_kinds(fields: Fields, count: int) -> list[_Kind]:
    rotary = read_rotary_layers(fields, fields.integers("no_rope_layers") or None, count)
    usual = [CHUNKED if turned else FULL for turned in rotary]
    types = read_layer_types(fields, usual, (CHUNKED, FULL))
    chunks = fields.size_or_none("attention_chunk_size") is not None
    return [(turned, chunks and kind == CHUNKED) for turned, kind in zip(rotary, types, strict=True)]


def _sparse_layers(fields: Fields, count: int) -> list[bool]:
    chosen, step = fields.integers("moe_layers"), fields.count("interleave_moe_layer_step")
    fields.carry("interleave_moe_layer_step")
    if chosen is None and step == 0:
        fields.problem("interleave_moe_layer_step", "expected at least 1 where moe_layers is not given, found 0")
    if chosen is None:
        return [step > 0 and (i + 1) % step == 0 for i in range(count)]
    members = set(chosen)
    return [i in members for i in range(count)]


def _attention(fields: Fields, rotary: bool, chunked: bool) -> Data:
    more: Data = both_biases(fields)
    if rotary and fields.flag("use_qk_norm"):
        more["qk_norm"] = {"kind": "l2", "eps": fields.number("rms_norm_eps")}
    if not rotary and fields.flag("attn_temperature_tuning"):
        more["temperature"] = {"floor_scale": fields.number("floor_scale"), "attn_scale": fields.number("attn_scale")}
    mask = {"kind": "chunked", "size": fields.size("attention_chunk_size")} if chunked else CAUSAL
    position = read_rope(fields, "interleaved") if rotary else {"kind": "none"}
    return read_gqa(fields, mask=mask, position=position, **more)


def _carry_unused(fields: Fields, kinds: list[_Kind], sparse: list[bool]) -> None:
    """Fields that no layer of this model reads."""
    fields.carry("router_jitter_noise")
    turned = {rotary for rotary, _ in kinds}
    if True not in turned:
        fields.carry("use_qk_norm", "rope_theta", "rope_scaling", "rope_parameters")
    if False not in turned or not fields.flag("attn_temperature_tuning"):
        fields.carry("attn_temperature_tuning", "floor_scale", "attn_scale")
    if not any(chunked for _, chunked in kinds):
        fields.carry("attention_chunk_size")
    if all(sparse):
        fields.carry("intermediate_size_mlp")
    if not any(sparse):
        fields.carry("intermediate_size", "num_local_experts", "num_experts_per_tok")
    if not fields.data.get("no_rope_layers"):
        fields.carry("no_rope_layers")


def _moe(fields: Fields) -> Data:
    return {
        "kind": "moe",
        "num_experts": fields.size("num_local_experts"),
        "num_experts_per_token": fields.size("num_experts_per_tok"),
        "num_shared_experts": 1,
        "intermediate_size": fields.size("intermediate_size"),
        "router": {"score": "sigmoid", "scales": "input"},
    }


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that Llama4ForCausalLM reads."""
    blocks = model.text.stack.blocks
    specs = [attention_of(item) for item in blocks]
    rotary = [spec for spec in specs if spec and isinstance(spec.position, Rope)]
    chunked = [spec is not None and isinstance(spec.mask, ChunkedMask) for spec in specs]
    lead = rotary[0] if rotary else needed(blocks, GQASpec, "grouped-query attention")
    return {
        **write_text(model.text, style),
        **write_gqa(lead, style),
        "hidden_act": "silu",
        "attention_bias": lead.qkv_bias,
        "no_rope_layers": [int(spec in rotary) for spec in specs],
        "layer_types": [CHUNKED if yes else FULL for yes in chunked],
        "attention_chunk_size": local_size(blocks, ChunkedMask),
        **({"use_qk_norm": isinstance(lead.qk_norm, L2Norm)} if rotary else {}),
        **_write_temperature(specs),
        **_write_ffn(blocks),
    }


def _write_temperature(specs: list[GQASpec | None]) -> Data:
    unturned = next((spec for spec in specs if spec and not isinstance(spec.position, Rope)), None)
    if unturned is None:
        return {}
    if unturned.temperature is None:
        return {"attn_temperature_tuning": False}
    floor_scale = unturned.temperature.floor_scale
    return {
        "attn_temperature_tuning": True,
        "floor_scale": int(floor_scale) if floor_scale.is_integer() else floor_scale,
        "attn_scale": unturned.temperature.attn_scale,
    }


def _write_ffn(blocks: tuple[ResolvedBlock, ...]) -> Data:
    dense, moe = first(blocks, SwiGLUSpec), first(blocks, MoESpec)
    experts: Data = {}
    if moe:
        experts = {
            "intermediate_size": moe.intermediate_size,
            "num_local_experts": moe.num_experts,
            "num_experts_per_tok": moe.num_experts_per_token,
        }
    sparse = [i for i, item in enumerate(blocks) if item.ffn and isinstance(item.ffn.spec, MoESpec)]
    widths = {"intermediate_size_mlp": dense.intermediate_size} if dense else {}
    return {"moe_layers": sparse, **experts, **widths}


DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "layer_types": None,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "moe_layers": None,
    "interleave_moe_layer_step": 1,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "router_jitter_noise": 0.0,
}
IGNORABLE = ("for_llm_compressor",)
NAMES = {**DECODER, FFN: "model.layers.#.feed_forward."}
"""Experts are [expert, in, out], gate before up."""
FAMILY = Family(
    "llama4_text",
    "Llama4ForCausalLM",
    "models/llama4/modeling_llama4.py",
    read,
    write,
    Naming(NAMES, fused_in_out=True, fused_first=True),
    defaults=DEFAULTS,
    ignorable=IGNORABLE,
)
