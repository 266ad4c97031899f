"""Oracles of families whose queries attend to the tokens that an index chooses."""

from collections.abc import Callable
from typing import Any

import transformers

from tests.runtime.newer_families import DEFAULT_ROPE, DENSE
from tests.runtime.oracles import Oracle, _common, _random
from tests.runtime.tiny import MLA, Json, moe, text_of

TOPK = 5
INDEX: Json = {"index_num_heads": 8, "index_head_dim": 12, "index_topk": TOPK}
"""Eight heads: a key whose products are all negative scores 0, and equal scores could be chosen either way."""
_SIZES: Json = {
    "intermediate_size": 64,
    "moe_intermediate_size": 40,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "rms_norm_eps": 1e-6,
    "rope_parameters": DEFAULT_ROPE,
    "index_n_heads": 8,
    "index_head_dim": 12,
    "index_topk": TOPK,
}


def deepseek_v32(seed: int = 0) -> Oracle:
    """DeepseekV32ForCausalLM: five of up to 45 tokens are attended to; the index turns halves of its heads."""
    return _oracle(transformers.DeepseekV32Config, transformers.DeepseekV32ForCausalLM, "half", seed)


def glm_moe_dsa(seed: int = 0) -> Oracle:
    """GlmMoeDsaForCausalLM (GLM-5): the same; the index turns neighbours."""
    return _oracle(transformers.GlmMoeDsaConfig, transformers.GlmMoeDsaForCausalLM, "interleaved", seed)


def _oracle(config_class: Callable[..., Any], model_class: Callable[[Any], Any], layout: str, seed: int) -> Oracle:
    common = _common(3) | {"num_key_value_heads": 4}
    del common["head_dim"]
    config = config_class(**common, **_SIZES)
    config._attn_implementation = "eager"
    attention = MLA | INDEX | {"kind": "sparse_mla", "index_layout": layout}
    router: Json = {
        "score": "sigmoid",
        "scales": "output",
        "renormalize": True,
        "scaling_factor": 2.5,
        "num_groups": 4,
        "num_limited_groups": 2,
        "correction_bias": True,
    }
    experts = moe(num_experts=8, num_experts_per_token=3, num_shared_experts=1, router=router)
    layers: list[Json] = [{"attention": "attention", "ffn": ffn} for ffn in ("dense", "moe", "moe")]
    text = text_of(
        {"attention": attention, "dense": DENSE, "moe": experts}, layers, norm={"kind": "rmsnorm", "eps": 1e-6}
    )
    return Oracle(_random(model_class(config), seed), text, 3)


SPARSE_FAMILIES: dict[str, Any] = {"deepseek_v32": deepseek_v32, "glm_moe_dsa": glm_moe_dsa}
