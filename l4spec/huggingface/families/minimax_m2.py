"""`minimax_m2`: MiniMax-M2 to M2.7; half of each head turned, queries and keys normed over all heads."""

from typing import Any

from l4spec.huggingface.decoder import Decoder
from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import DECODER, FFN, Naming

DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 196608,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 5000000.0,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "intermediate_size": 1536,
}
NAMES = {
    **DECODER,
    FFN: "model.layers.#.block_sparse_moe.",
    f"{FFN}router.": "model.layers.#.block_sparse_moe.gate.",
    f"{FFN}router.correction_bias": "model.layers.#.block_sparse_moe.e_score_correction_bias",
}
DECODER_OF = Decoder(
    qk_norm="width",
    experts=ExpertFields(
        num="num_local_experts",
        width="intermediate_size",
        router={"score": "sigmoid", "correction_bias": True},
    ),
)


def read(fields: Fields) -> dict[str, Any]:
    """Read by the table; every layer must attend fully."""
    kinds = fields.integers("attn_type_list") if fields.has("attn_type_list") else None
    if kinds is not None and set(kinds) - {1}:
        fields.problem("attn_type_list", "expected 1, full attention, for every layer: lightning attention is not read")
    fields.carry("attn_type_list")
    return DECODER_OF.read(fields)


FAMILY = Family(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    "models/minimax_m2/modeling_minimax_m2.py",
    read,
    DECODER_OF.write,
    Naming(NAMES, each=("w1", "w3", "w2")),
    defaults=DEFAULTS,
    fixed={
        "scoring_func": ("sigmoid",),
        "use_routing_bias": (True,),
        "use_qk_norm": (True,),
        "qk_norm_type": ("per_layer",),
        "shared_intermediate_size": (0,),
    },
    ignorable=(
        "use_mtp",
        "num_mtp_modules",
        "mtp_transformer_layers",
        "attn_window_size",
        "swa_rope_theta",
    ),
    aliases={"num_experts": "num_local_experts"},
)
