"""Oracles of families of 2024 to 2026: what grouped-query attention and mixtures of experts had to learn for them."""

from typing import Any

import transformers

from tests.runtime.oracles import HIDDEN, Oracle, _common, _random
from tests.runtime.tiny import ROPE, Json, gqa, moe, text_of

DEFAULT_ROPE: Json = {"rope_type": "default", "rope_theta": 10000.0}
WINDOW: Json = {"kind": "sliding_window", "size": 6}
DENSE: Json = {"kind": "swiglu", "intermediate_size": 64}


def gpt_oss(seed: int = 0) -> Oracle:
    """GptOssForCausalLM: sinks, biases, every other layer a window, YaRN that rounds no band, clamped experts."""
    yarn = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    config = transformers.GptOssConfig(
        **_common(4),
        intermediate_size=40,
        num_local_experts=6,
        num_experts_per_tok=2,
        sliding_window=6,
        attention_bias=True,
        rms_norm_eps=1e-5,
        swiglu_limit=1.5,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "original_max_position_embeddings": 64,
            **yarn,
        },
    )
    rope = {"kind": "rope", "theta": 150000.0, "scaling": {"kind": "yarn", "original_max_seq_len": 64, **yarn}}
    others: Json = {"position": rope, "sinks": True, "qkv_bias": True, "output_bias": True}
    experts = moe(
        router={"score": "softmax", "renormalize": True, "bias": True},
        expert_bias=True,
        clamp={"limit": 1.5, "alpha": 1.702, "up_offset": 1.0},
    )
    parts = {"local": gqa(mask=WINDOW, **others), "global": gqa(**others), "moe": experts}
    layers = [{"attention": name, "ffn": "moe"} for name in ("local", "global") * 2]
    return Oracle(_random(transformers.GptOssForCausalLM(config), seed), text_of(parts, layers), 4)


def gemma3(seed: int = 0) -> Oracle:
    """Gemma3ForCausalLM: windows with a rope base of their own, zero-centred norms of queries and keys, sandwiches."""
    config = transformers.Gemma3TextConfig(
        **(_common(4) | {"tie_word_embeddings": True}),
        intermediate_size=64,
        query_pre_attn_scalar=20,
        sliding_window=6,
        layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        rms_norm_eps=1e-6,
        rope_parameters={
            "sliding_attention": DEFAULT_ROPE,
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
        },
    )
    others = {"scale": 20**-0.5, "qk_norm": {"kind": "rmsnorm", "eps": 1e-6, "unit_offset": True}}
    far = {"kind": "rope", "theta": 1000000.0, "scaling": {"kind": "linear", "factor": 8.0}}
    parts = {
        "local": gqa(mask=WINDOW, position=ROPE, **others),
        "global": gqa(position=far, **others),
        "ffn": {"kind": "geglu", "intermediate_size": 64},
    }
    layers = [{"attention": name, "ffn": "ffn", "form": "sandwich"} for name in ("local",) * 3 + ("global",)]
    text = text_of(
        parts,
        layers,
        norm={"kind": "rmsnorm", "eps": 1e-6, "unit_offset": True},
        tie_embeddings=True,
        embedding_scale=HIDDEN**0.5,
    )
    return Oracle(_random(transformers.Gemma3ForCausalLM(config), seed), text, 4)


def olmo2(seed: int = 0) -> Oracle:
    """Olmo2ForCausalLM: queries and keys normed over all heads, norms after attention and feed-forward layer."""
    config = transformers.Olmo2Config(
        **_common(3), intermediate_size=64, rms_norm_eps=1e-6, rope_parameters=DEFAULT_ROPE
    )
    parts = {"attention": gqa(position=ROPE, qk_norm={"kind": "rmsnorm", "over": "width"}), "ffn": DENSE}
    layers = [{"attention": "attention", "ffn": "ffn", "form": "output_norm", "repeat": 3}]
    text = text_of(parts, layers, norm={"kind": "rmsnorm", "eps": 1e-6})
    return Oracle(_random(transformers.Olmo2ForCausalLM(config), seed), text, 3)


def minimax_m2(seed: int = 0) -> Oracle:
    """MiniMaxM2ForCausalLM: norms over all heads, half of each head turned, sigmoid scores with a correction bias."""
    config = transformers.MiniMaxM2Config(
        **_common(3),
        intermediate_size=40,
        num_local_experts=6,
        num_experts_per_tok=2,
        rms_norm_eps=1e-6,
        rope_parameters=DEFAULT_ROPE | {"partial_rotary_factor": 0.5},
    )
    attention = gqa(position=ROPE | {"rotary_dim": 8}, qk_norm={"kind": "rmsnorm", "over": "width"})
    experts = moe(router={"score": "sigmoid", "renormalize": True, "correction_bias": True})
    parts = {"attention": attention, "moe": experts}
    text = text_of(
        parts, [{"attention": "attention", "ffn": "moe", "repeat": 3}], norm={"kind": "rmsnorm", "eps": 1e-6}
    )
    return Oracle(_random(transformers.MiniMaxM2ForCausalLM(config), seed), text, 3)


def glm4_moe(seed: int = 0) -> Oracle:
    """Glm4MoeForCausalLM (GLM-4.5): partial rotary, biases, norms of each head, a dense first layer, shared experts."""
    config = transformers.Glm4MoeConfig(
        **_common(3),
        intermediate_size=64,
        moe_intermediate_size=40,
        n_routed_experts=6,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        attention_bias=True,
        use_qk_norm=True,
        rms_norm_eps=1e-5,
        rope_parameters=DEFAULT_ROPE | {"partial_rotary_factor": 0.5},
    )
    attention = gqa(position=ROPE | {"rotary_dim": 8}, qkv_bias=True, qk_norm={"kind": "rmsnorm", "eps": 1e-5})
    router = {"score": "sigmoid", "renormalize": True, "scaling_factor": 2.5, "correction_bias": True}
    parts = {"attention": attention, "dense": DENSE, "moe": moe(num_shared_experts=1, router=router)}
    layers = [{"attention": "attention", "ffn": ffn} for ffn in ("dense", "moe", "moe")]
    return Oracle(_random(transformers.Glm4MoeForCausalLM(config), seed), text_of(parts, layers), 3)


def qwen2_moe(seed: int = 0) -> Oracle:
    """Qwen2MoeForCausalLM: a shared expert of its own width after a sigmoid gate."""
    common = _common(3)
    config = transformers.Qwen2MoeConfig(
        **common,
        intermediate_size=64,
        moe_intermediate_size=40,
        shared_expert_intermediate_size=24,
        num_experts=6,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        norm_topk_prob=False,
        qkv_bias=True,
        rms_norm_eps=1e-6,
        rope_parameters=DEFAULT_ROPE,
    )
    experts = moe(router={"score": "softmax"}, num_shared_experts=1, shared_intermediate_size=24, shared_gate=True)
    parts = {"attention": gqa(position=ROPE, qkv_bias=True), "moe": experts}
    text = text_of(
        parts, [{"attention": "attention", "ffn": "moe", "repeat": 3}], norm={"kind": "rmsnorm", "eps": 1e-6}
    )
    return Oracle(_random(transformers.Qwen2MoeForCausalLM(config), seed), text, 3)


def mimo_v2_flash(seed: int = 0) -> Oracle:
    """MiMoV2FlashForCausalLM: windows with sinks and twice the KV heads, values narrower than keys and scaled."""
    turned = {"partial_rotary_factor": 0.5}
    config = transformers.MiMoV2FlashConfig(
        **_common(3),
        intermediate_size=64,
        moe_intermediate_size=40,
        n_routed_experts=6,
        num_experts_per_tok=2,
        v_head_dim=12,
        sliding_window=6,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        rms_norm_eps=1e-6,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0, **turned},
            "sliding_attention": DEFAULT_ROPE | turned,
        },
    )
    values: Json = {"v_head_dim": 12, "value_scale": 0.707}
    far: Json = {"kind": "rope", "theta": 1000000.0, "rotary_dim": 8}
    local = gqa(num_kv_heads=4, mask=WINDOW, position=ROPE | {"rotary_dim": 8}, sinks=True, **values)
    experts = moe(router={"score": "sigmoid", "renormalize": True, "correction_bias": True})
    parts = {"full": gqa(position=far, **values), "local": local, "dense": DENSE, "moe": experts}
    layers: list[Json] = [{"attention": "full", "ffn": "dense"}, {"attention": "local", "ffn": "moe", "repeat": 2}]
    text = text_of(parts, layers, norm={"kind": "rmsnorm", "eps": 1e-6})
    return Oracle(_random(transformers.MiMoV2FlashForCausalLM(config), seed), text, 3)


NEWER_FAMILIES: dict[str, Any] = {
    "gpt_oss": gpt_oss,
    "gemma3": gemma3,
    "olmo2": olmo2,
    "minimax_m2": minimax_m2,
    "glm4_moe": glm4_moe,
    "qwen2_moe": qwen2_moe,
    "mimo_v2_flash": mimo_v2_flash,
}
