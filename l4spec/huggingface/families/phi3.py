"""`phi3`: Phi-3 and 4; Llama with joined projections."""

from l4spec.huggingface.decoder import Decoder
from l4spec.huggingface.family import Family
from l4spec.huggingface.naming import DECODER, Naming

DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "sliding_window": None,
}
JOINED = {
    f"model.layers.#.self_attn.qkv_proj.{kind}": tuple(f"text.layers.#.attention.{part}_proj.{kind}" for part in "qkv")
    for kind in ("weight", "bias")
}
JOINED["model.layers.#.mlp.gate_up_proj.weight"] = tuple(
    f"text.layers.#.ffn.{part}_proj.weight" for part in ("gate", "up")
)
DECODER_OF = Decoder(windows="every")
FAMILY = Family(
    "phi3",
    "Phi3ForCausalLM",
    "models/phi3/modeling_phi3.py",
    DECODER_OF.read,
    DECODER_OF.write,
    Naming(DECODER, joined=JOINED),
    defaults=DEFAULTS,
    ignorable=("original_max_position_embeddings",),
)
