"""`deepseek_v3`: DeepSeek-V3 and R1; latent attention, some dense layers first, grouped sigmoid routing with a bias."""

from typing import Any

from l4spec.huggingface.family import Family, first, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.latent import LATENT_NAMES, latent_fields, read_latent
from l4spec.huggingface.modules import with_modules, written_modules
from l4spec.huggingface.naming import AFTER_LAYERS, FFN, GATED, Naming
from l4spec.huggingface.rope import read_rope, write_rope
from l4spec.huggingface.text import Data, block, num_layers, read_text, write_text
from l4spec.layers.attention.positions import Rope
from l4spec.layers.mla.spec import LatentSpec, MLASpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

MODULES = "num_nextn_predict_layers"


def read(fields: Fields) -> dict[str, Any]:
    """The model, and beside it the multi-token-prediction modules that `num_nextn_predict_layers` counts."""
    fields.expect("hidden_act", "silu")
    count = num_layers(fields)
    num_dense = min(fields.count("first_k_dense_replace"), count)
    fields.carry("first_k_dense_replace", "num_mtp_layers")
    parts: Data = {"attention": _mla(fields)}
    if num_dense:
        parts["dense"] = {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size")}
    else:
        fields.carry("intermediate_size")
    parts["moe"] = _moe(fields)
    if num_dense == count:
        fields.consequence("first_k_dense_replace", f"leaves no MoE layer among {count}")
    blocks = [block("attention", "dense")] * num_dense + [block("attention", "moe")] * (count - num_dense)
    spec = {"text": read_text(fields, parts, blocks)}
    return with_modules(fields, spec, MODULES, dict(blocks[-1]), copies=True)


def _mla(fields: Fields) -> Data:
    fields.expect_derived("head_dim", fields.size("qk_rope_head_dim"))
    return read_latent(fields, read_rope(fields, "interleaved" if fields.flag("rope_interleave") else "half"))


def _moe(fields: Fields) -> Data:
    return {
        "kind": "moe",
        "num_experts": fields.size("n_routed_experts"),
        "num_experts_per_token": fields.size("num_experts_per_tok"),
        "num_shared_experts": fields.size("n_shared_experts"),
        "intermediate_size": fields.size("moe_intermediate_size"),
        "router": {
            "score": "sigmoid",
            "scales": "output",
            "renormalize": fields.flag("norm_topk_prob"),
            "scaling_factor": fields.number("routed_scaling_factor"),
            "num_groups": fields.size("n_group"),
            "num_limited_groups": fields.size("topk_group"),
            "group_score": "top2_sum",
            "correction_bias": True,
        },
    }


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that DeepseekV3ForCausalLM reads."""
    return write_latent(model, style, needed(model.text.stack.blocks, MLASpec, "latent attention"))


def write_latent(model: ResolvedModel, style: RopeStyle, mla: LatentSpec) -> dict[str, Any]:
    """The fields of a model with this attention, dense layers first and a mixture after them."""
    blocks = model.text.stack.blocks
    moe, dense = needed(blocks, MoESpec, "MoE"), first(blocks, SwiGLUSpec)
    kinds = [block.ffn is not None and isinstance(block.ffn.spec, MoESpec) for block in blocks]
    rope = mla.position if isinstance(mla.position, Rope) else None
    return {
        **write_text(model.text, style),
        **written_modules(model, MODULES),
        **latent_fields(mla),
        **(write_rope(rope, style) if rope else {}),
        "rope_interleave": rope is not None and rope.layout == "interleaved",
        "hidden_act": "silu",
        **({"intermediate_size": dense.intermediate_size} if dense else {}),
        "first_k_dense_replace": kinds.index(True),
        **_write_moe(moe),
    }


def _write_moe(moe: MoESpec) -> Data:
    return {
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_token,
        "n_shared_experts": moe.num_shared_experts,
        "moe_intermediate_size": moe.intermediate_size,
        "norm_topk_prob": moe.router.renormalize,
        "routed_scaling_factor": moe.router.scaling_factor,
        "n_group": moe.router.num_groups,
        "topk_group": moe.router.num_limited_groups,
    }


NAMES = {
    **GATED,
    **LATENT_NAMES,
    f"{FFN}router.correction_bias": "model.layers.#.mlp.gate.e_score_correction_bias",
    f"{FFN}shared_expert.": "model.layers.#.mlp.shared_experts.",
}
FAMILY = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    "models/deepseek_v3/modeling_deepseek_v3.py",
    read,
    write,
    Naming(NAMES, next_token_layers=1, modules=AFTER_LAYERS),
    defaults={
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "rope_interleave": True,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "moe_intermediate_size": 2048,
    },
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    fixed={"topk_method": ("noaux_tc",), "scoring_func": ("sigmoid",), "moe_layer_freq": (1,)},
)
