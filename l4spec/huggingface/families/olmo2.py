"""`olmo2`: OLMo 2; norms after each layer, queries and keys normed over all heads."""

from l4spec.huggingface.decoder import Decoder
from l4spec.huggingface.family import Family
from l4spec.huggingface.naming import DECODER, Naming

DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "attention_bias": False,
}
NAMES = {
    **DECODER,
    "text.layers.#.attention_post_norm.": "model.layers.#.post_attention_layernorm.",
    "text.layers.#.ffn_post_norm.": "model.layers.#.post_feedforward_layernorm.",
}
DECODER_OF = Decoder(qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="width", form="output_norm")
FAMILY = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    "models/olmo2/modeling_olmo2.py",
    DECODER_OF.read,
    DECODER_OF.write,
    Naming(NAMES),
    defaults=DEFAULTS,
)
