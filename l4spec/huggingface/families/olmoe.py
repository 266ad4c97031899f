"""`olmoe`: OLMoE; a mixture in every layer, queries and keys normed over all heads."""

from l4spec.huggingface.decoder import Decoder
from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family
from l4spec.huggingface.naming import GATED, Naming

DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "intermediate_size": 2048,
    "norm_topk_prob": False,
    "clip_qkv": None,
}
DECODER_OF = Decoder(
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    qk_norm="width",
    experts=ExpertFields(width="intermediate_size", renormalize="norm_topk_prob"),
)
FAMILY = Family(
    "olmoe",
    "OlmoeForCausalLM",
    "models/olmoe/modeling_olmoe.py",
    DECODER_OF.read,
    DECODER_OF.write,
    Naming(GATED),
    defaults=DEFAULTS,
    fixed={"clip_qkv": ()},
    aliases={"num_local_experts": "num_experts"},
)
