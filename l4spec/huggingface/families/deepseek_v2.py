"""`deepseek_v2`: DeepSeek-V2 and its Lite; latent attention as V3, softmax routing, limited to some groups or not."""

from typing import Any

from l4spec.huggingface.families import deepseek_v3
from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import Naming
from l4spec.layers.moe.spec import MoESpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

_GREEDY, _LIMITED = "greedy", "group_limited_greedy"


def read(fields: Fields) -> dict[str, Any]:
    """As V3, with scores of a softmax that are neither renormalized nor corrected by a bias."""
    fields.expect("topk_method", _GREEDY, _LIMITED)
    limited = fields.raw("topk_method") == _LIMITED
    fields.carry("topk_method", "n_group", "topk_group")
    if not limited:  # without a limit the groups mean nothing
        fields.data = {**fields.data, "n_group": 1, "topk_group": 1}
    spec = deepseek_v3.read(fields)
    router = spec["text"]["parts"]["moe"]["router"]
    groups = {name: router[name] for name in ("num_groups", "num_limited_groups")} if limited else {}
    spec["text"]["parts"]["moe"]["router"] = {
        "score": "softmax",
        "scales": "output",
        "scaling_factor": router["scaling_factor"],
        **groups,
        **({"group_score": "max"} if limited else {}),
    }
    return spec


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that DeepseekV2ForCausalLM reads."""
    moe = needed(model.text.stack.blocks, MoESpec, "MoE")
    written = deepseek_v3.write(model, style)
    limited = moe.router.num_groups > 1
    for name in ("rope_interleave", "norm_topk_prob", *(() if limited else ("n_group", "topk_group"))):
        written.pop(name, None)
    return {**written, "topk_method": _LIMITED if limited else _GREEDY}


FAMILY = Family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    "models/deepseek_v2/modeling_deepseek_v2.py",
    read,
    write,
    Naming(deepseek_v3.NAMES),
    defaults={
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_interleave": True,
        "attention_bias": False,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_group": None,
        "topk_group": None,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "routed_scaling_factor": 1.0,
        "v_head_dim": 128,
        "moe_intermediate_size": 1407,
    },
    fixed={
        "norm_topk_prob": (False,),
        "scoring_func": ("softmax",),
        "moe_layer_freq": (1,),
        "rope_interleave": (True,),
    },
    aliases={"num_local_experts": "n_routed_experts"},
)
