"""The other families' oracles: Llama 3, Mixtral, DeepSeek-V3, Gemma 2, Qwen3-MoE."""

from typing import Any

import transformers

from tests.runtime.oracles import HIDDEN, Oracle, _common, _random
from tests.runtime.tiny import ROPE, Json, gqa, moe, text_of


def llama3(seed: int = 0) -> Oracle:
    """LlamaForCausalLM with Llama 3's rope scaling: pairs kept, blended and divided all occur."""
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = transformers.LlamaConfig(
        **_common(3),
        intermediate_size=64,
        rms_norm_eps=1e-5,
        attention_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "original_max_position_embeddings": 64,
            **scaling,
        },
    )
    rope = {"kind": "rope", "theta": 100.0, "scaling": {"kind": "llama3", "original_max_seq_len": 64, **scaling}}
    parts = {
        "attention": gqa(position=rope, qkv_bias=True, output_bias=True),
        "ffn": {"kind": "swiglu", "intermediate_size": 64},
    }
    text = text_of(parts, [{"attention": "attention", "ffn": "ffn", "repeat": 3}])
    return Oracle(_random(transformers.LlamaForCausalLM(config), seed), text, 3)


def mixtral(seed: int = 0) -> Oracle:
    """MixtralForCausalLM with a sliding window: softmax over all experts, the best two renormalised, on the output."""
    config = transformers.MixtralConfig(
        **_common(3),
        intermediate_size=40,
        num_local_experts=6,
        num_experts_per_tok=2,
        sliding_window=7,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    parts = {
        "attention": gqa(position=ROPE, mask={"kind": "sliding_window", "size": 7}),
        "ffn": moe(router={"score": "softmax", "scales": "output", "renormalize": True}),
    }
    text = text_of(parts, [{"attention": "attention", "ffn": "ffn", "repeat": 3}])
    return Oracle(_random(transformers.MixtralForCausalLM(config), seed), text, 3)


def qwen3_moe(seed: int = 0) -> Oracle:
    """Qwen3MoeForCausalLM: an RMSNorm with weights on every query and key head before the rotation."""
    config = transformers.Qwen3MoeConfig(
        **_common(3),
        intermediate_size=64,
        moe_intermediate_size=40,
        num_experts=6,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    parts = {
        "attention": gqa(position=ROPE, qk_norm={"kind": "rmsnorm", "eps": 1e-6}),
        "moe": moe(router={"score": "softmax", "scales": "output", "renormalize": True}),
        "dense": {"kind": "swiglu", "intermediate_size": 64},
    }
    layers = [{"attention": "attention", "ffn": ffn} for ffn in ("moe", "dense", "moe")]
    text = text_of(parts, layers, norm={"kind": "rmsnorm", "eps": 1e-6})
    return Oracle(_random(transformers.Qwen3MoeForCausalLM(config), seed), text, 3)


_YARN: Json = {"factor": 4.0, "beta_fast": 4.0, "beta_slow": 1.0, "mscale": 0.7, "mscale_all_dim": 1.3}


def deepseek_v3(q_lora_rank: int | None = 24, seed: int = 0) -> Oracle:
    """DeepseekV3ForCausalLM: latent attention with YaRN, groups of experts, a correction bias, a dense first layer."""
    common = _common(3) | {"num_key_value_heads": 4, "num_nextn_predict_layers": 0}
    del common["head_dim"]
    config = transformers.DeepseekV3Config(
        **common,
        intermediate_size=64,
        moe_intermediate_size=40,
        n_routed_experts=8,
        n_shared_experts=2,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        first_k_dense_replace=1,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=12,
        rms_norm_eps=1e-6,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "original_max_position_embeddings": 64,
            **_YARN,
        },
    )
    attention: Json = {
        "kind": "mla",
        "num_heads": 4,
        "q_lora_rank": q_lora_rank,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 12,
        "mask": {"kind": "causal"},
        "position": {
            "kind": "rope",
            "theta": 100.0,
            "layout": "interleaved",
            "scaling": {"kind": "yarn", "original_max_seq_len": 64, **_YARN},
        },
        "norm_eps": 1e-6,
    }
    parts = {"attention": attention, "dense": {"kind": "swiglu", "intermediate_size": 64}, "moe": _deepseek_moe()}
    layers = [{"attention": "attention", "ffn": ffn} for ffn in ("dense", "moe", "moe")]
    text = text_of(parts, layers, norm={"kind": "rmsnorm", "eps": 1e-6})
    return Oracle(_random(transformers.DeepseekV3ForCausalLM(config), seed), text, 3)


def _deepseek_moe() -> Json:
    router = {
        "score": "sigmoid",
        "scales": "output",
        "renormalize": True,
        "scaling_factor": 2.5,
        "num_groups": 4,
        "num_limited_groups": 2,
        "correction_bias": True,
    }
    return moe(num_experts=8, num_experts_per_token=3, num_shared_experts=2, router=router)


def gemma2(seed: int = 0) -> Oracle:
    """Gemma2ForCausalLM: sandwich blocks, soft-caps, alternating windows, scaled embeddings, a tied head."""
    config = transformers.Gemma2Config(
        **(_common(4) | {"tie_word_embeddings": True}),
        intermediate_size=64,
        query_pre_attn_scalar=20,
        sliding_window=6,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    others = {"position": ROPE, "logit_softcap": 5.0, "scale": 20**-0.5}
    parts = {
        "local": gqa(mask={"kind": "sliding_window", "size": 6}, **others),
        "global": gqa(**others),
        "ffn": {"kind": "geglu", "intermediate_size": 64},
    }
    layers = [{"attention": name, "ffn": "ffn", "form": "sandwich"} for name in ("local", "global") * 2]
    text = text_of(
        parts,
        layers,
        norm={"kind": "rmsnorm", "eps": 1e-6, "unit_offset": True},
        tie_embeddings=True,
        embedding_scale=HIDDEN**0.5,
        logit_softcap=3.0,
    )
    return Oracle(_random(transformers.Gemma2ForCausalLM(config), seed), text, 4)


FAMILIES: dict[str, Any] = {
    "llama3": llama3,
    "mixtral": mixtral,
    "deepseek_v3": deepseek_v3,
    "gemma2": gemma2,
    "qwen3_moe": qwen3_moe,
}
