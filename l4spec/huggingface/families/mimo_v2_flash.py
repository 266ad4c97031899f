"""`mimo_v2_flash`: MiMo-V2-Flash; windows with sinks, more KV heads and a rope base of their own, narrower values."""

from typing import Any

from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family, first, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import FFN, GATED, Naming
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
_PARTIAL = 0.334
_THETAS = {SLIDING: 10000.0, FULL: 5000000.0}
_EXPERTS = ExpertFields(
    num="n_routed_experts",
    renormalize="norm_topk_prob",
    scaling="routed_scaling_factor",
    groups=True,
    router={"score": "sigmoid", "correction_bias": True},
)


def read(fields: Fields) -> dict[str, Any]:
    """Windows by `layer_types` or `hybrid_layer_pattern`, mixtures by `mlp_layer_types` or `moe_layer_freq`."""
    fields.expect("hidden_act", "silu")
    if not fields.has("routed_scaling_factor"):  # null in the published config, and 1 then
        fields.carry("routed_scaling_factor")
        fields.data = {name: value for name, value in fields.data.items() if name != "routed_scaling_factor"}
    count, size = num_layers(fields), fields.size("sliding_window")
    if fields.has("sliding_window_size"):  # tokens before the query, which sees itself too
        size = fields.size("sliding_window_size") + 1
        fields.carry("sliding_window_size", "sliding_window")
    usual = [SLIDING if index and (index + 1) % 6 else FULL for index in range(count)]
    types = read_layer_types(
        fields, _by_number(fields, "hybrid_layer_pattern", usual, (FULL, SLIDING)), (FULL, SLIDING)
    )
    ffns = _by_number(fields, "moe_layer_freq", ["dense", *["sparse"] * (count - 1)], ("dense", "sparse"))
    words = fields.words("mlp_layer_types", ("dense", "sparse"))
    ffns = words if words is not None and len(words) == count else ffns
    ropes = _read_ropes(fields)
    if SLIDING not in types:
        fields.carry("sliding_window")
    if len(set(types)) == 1:
        fields.carry("rope_parameters")
    parts: Data = {
        _NAMES[kind]: _attention(fields, kind, ropes[kind], size) for kind in sorted(set(types), reverse=True)
    }
    if "dense" in ffns:
        parts["dense"] = {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size")}
    if "sparse" in ffns:
        parts["moe"] = _EXPERTS.read(fields)
    fields.carry("intermediate_size", *_EXPERTS.fields())
    names = {"dense": "dense", "sparse": "moe"}
    blocks = [block(_NAMES[kind], names[ffn]) for kind, ffn in zip(types, ffns, strict=True)]
    norm = {"kind": "rmsnorm", "eps": fields.number("rms_norm_eps")}
    return {"text": read_text(fields, parts, blocks, norm=norm)}


def _by_number(fields: Fields, name: str, usual: list[str], words: tuple[str, str]) -> list[str]:
    """A list of 0 and 1, one per layer, as words; the `usual` ones where the config has none."""
    fields.carry(name)
    if not fields.has(name):
        return usual
    numbers = fields.integers(name) or []
    if len(numbers) != len(usual) or set(numbers) - {0, 1}:
        fields.problem(name, f"expected {len(usual)} numbers, each 0 or 1")
        return usual
    return [words[number] for number in numbers]


def _attention(fields: Fields, kind: str, rope: Data, size: int) -> Data:
    scale = fields.number_or_none("attention_value_scale")
    more: Data = {"v_head_dim": fields.size("v_head_dim")}
    if scale is not None and scale != 1:
        more["value_scale"] = scale
    if fields.flag("attention_bias"):
        more["qkv_bias"] = True
    part = read_gqa(fields, position=rope, mask=window(size if kind == SLIDING else None), **more)
    head_dim, heads = part["head_dim"], part["num_heads"]
    if kind == SLIDING:
        part |= {"num_kv_heads": 2 * part["num_kv_heads"], "sinks": True}
        same = {"num_attention_heads": heads, "num_key_value_heads": part["num_kv_heads"]}
        for name, value in {**same, "head_dim": head_dim, "v_head_dim": more["v_head_dim"]}.items():
            fields.expect_derived(f"swa_{name}", value)
    return part


def _read_ropes(fields: Fields) -> dict[str, Data]:
    """The rotation of each kind of layer: apart in `rope_parameters`, or two bases and a share."""
    nested, head_dim = fields.mapping("rope_parameters"), fields.size("head_dim")
    ropes = {}
    for kind, theta in _THETAS.items():
        inner = nested.mapping(kind) if nested is not None else None
        old = "swa_rope_theta" if kind == SLIDING else "rope_theta"
        outer = {"rope_theta": fields.number(old) if fields.has(old) else theta}
        share = fields.number("partial_rotary_factor") if fields.has("partial_rotary_factor") else _PARTIAL
        data = {"rope_parameters": inner.data} if inner is not None else {"partial_rotary_factor": share, **outer}
        holder = Fields(data, outer, fields.file, "rope_parameters", fields.problems)
        ropes[kind] = read_rope(holder, "half", head_dim=head_dim, partial=share)
    fields.read.update(("rope_theta", "swa_rope_theta", "partial_rotary_factor"))
    fields.carry("rope_theta", "swa_rope_theta", "partial_rotary_factor")
    if nested is not None:
        nested.finish((), {})
    return ropes


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that MiMoV2FlashForCausalLM reads."""
    blocks = model.text.stack.blocks
    attention, moe, dense = (
        needed(blocks, GQASpec, "grouped-query attention"),
        first(blocks, MoESpec),
        first(blocks, SwiGLUSpec),
    )
    specs = [spec for spec in map(attention_of, blocks) if spec is not None]
    full = next((spec for spec in specs if not isinstance(spec.mask, SlidingWindowMask)), None)
    kv_heads = full.num_kv_heads if full is not None else attention.num_kv_heads // 2
    ropes: Data = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in _THETAS.items()}
    for spec in specs:
        if isinstance(spec.position, Rope):
            kind = SLIDING if isinstance(spec.mask, SlidingWindowMask) else FULL
            turned = _share(spec.position.rotary_dim or spec.head_dim, spec.head_dim)
            ropes[kind] = {
                **write_rope(spec.position, "rope_parameters")["rope_parameters"],
                "partial_rotary_factor": turned,
            }
    size = local_size(blocks, SlidingWindowMask)
    return {
        **write_text(model.text, style),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": attention.head_dim,
        "v_head_dim": attention.value_dim,
        "attention_value_scale": attention.value_scale,
        "attention_bias": attention.qkv_bias,
        "rope_parameters": ropes,
        **({} if size is None else {"sliding_window": size}),
        "layer_types": write_layer_types(blocks),
        "mlp_layer_types": [
            "sparse" if item.ffn and isinstance(item.ffn.spec, MoESpec) else "dense" for item in blocks
        ],
        **({} if dense is None else {"intermediate_size": dense.intermediate_size}),
        **({} if moe is None else _EXPERTS.write(moe, blocks)),
        "hidden_act": "silu",
    }


def _share(turned: int, head_dim: int) -> float:
    """The share of a head that is read as so many turned elements, rounded down."""
    shares = (_PARTIAL, turned / head_dim, (turned + 0.5) / head_dim)
    return next(share for share in shares if int(head_dim * share) == turned)


FAMILY = Family(
    "mimo_v2_flash",
    "MiMoV2FlashForCausalLM",
    "models/mimo_v2_flash/modeling_mimo_v2_flash.py",
    read,
    write,
    Naming(
        {
            **GATED,
            f"{FFN}router.correction_bias": "model.layers.#.mlp.gate.e_score_correction_bias",
            "text.layers.#.attention.sinks": "model.layers.#.self_attn.attention_sink_bias",
        },
        optional=(r"^model\.mtp\.",),
    ),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 192,
        "v_head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_value_scale": 0.707,
        "sliding_window": 129,
        "layer_types": None,
        "mlp_layer_types": None,
        "moe_intermediate_size": 2048,
        "num_experts_per_tok": 8,
        "n_routed_experts": 256,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
    },
    aliases={"num_local_experts": "n_routed_experts", "layernorm_epsilon": "rms_norm_eps"},
    fixed={
        "topk_method": ("noaux_tc",),
        "scoring_func": ("sigmoid",),
        "n_shared_experts": (),
        "add_swa_attention_sink_bias": (True,),
        "add_full_attention_sink_bias": (False,),
    },
    ignorable=("attention_chunk_size",),
)
