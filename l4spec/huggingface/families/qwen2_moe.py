"""`qwen2_moe`: Qwen 1.5 and 2 with experts; a shared expert of its own width scaled by a gate."""

from l4spec.huggingface.decoder import Decoder
from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family
from l4spec.huggingface.naming import FFN, GATED, Naming

DEFAULTS = {
    "num_key_value_heads": 16,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "qkv_bias": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": None,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "norm_topk_prob": False,
}
NAMES = {**GATED, f"{FFN}shared_gate.": "model.layers.#.mlp.shared_expert_gate."}
DECODER_OF = Decoder(
    qkv_bias="qkv_bias",
    experts=ExpertFields(
        shared=1,
        shared_width="shared_expert_intermediate_size",
        renormalize="norm_topk_prob",
        others={"shared_gate": True},
        places="by_step",
    ),
)
FAMILY = Family(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    "models/qwen2_moe/modeling_qwen2_moe.py",
    DECODER_OF.read,
    DECODER_OF.write,
    Naming(NAMES),
    defaults=DEFAULTS,
    fixed={"use_sliding_window": (False,)},
    ignorable=(
        "sliding_window",
        "max_window_layers",
        "layer_types",
    ),
)
