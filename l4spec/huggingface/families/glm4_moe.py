"""`glm4_moe`: GLM-4.5 to 4.7; half of each head turned, biases on q, k and v, DeepSeek-like routing."""

from l4spec.huggingface.decoder import Decoder
from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.modules import with_modules, written_modules
from l4spec.huggingface.naming import AFTER_LAYERS, FFN, GATED, Naming
from l4spec.huggingface.text import Data
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

MODULES = "num_nextn_predict_layers"
DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "use_qk_norm": False,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
}
NAMES = {
    **GATED,
    f"{FFN}router.correction_bias": "model.layers.#.mlp.gate.e_score_correction_bias",
    f"{FFN}shared_expert.": "model.layers.#.mlp.shared_experts.",
}
DECODER_OF = Decoder(
    qkv_bias="attention_bias",
    qk_norm="head",
    qk_norm_field="use_qk_norm",
    partial=0.5,
    experts=ExpertFields(
        num="n_routed_experts",
        shared="n_shared_experts",
        renormalize="norm_topk_prob",
        scaling="routed_scaling_factor",
        groups=True,
        router={"score": "sigmoid", "correction_bias": True},
        places="after_dense",
    ),
)


def read(fields: Fields) -> Data:
    """The model, and beside it the modules that `num_nextn_predict_layers` counts: each a last block once more."""
    fields.carry("num_mtp_layers")
    spec = DECODER_OF.read(fields)
    return with_modules(fields, spec, MODULES, spec["text"]["layers"][-1], copies=True)


def write(model: ResolvedModel, style: RopeStyle) -> Data:
    """The fields that Glm4MoeForCausalLM reads, and the number of modules."""
    return {**DECODER_OF.write(model, style), **written_modules(model, MODULES)}


FAMILY = Family(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    "models/glm4_moe/modeling_glm4_moe.py",
    read,
    write,
    Naming(NAMES, next_token_layers=1, modules=AFTER_LAYERS),
    defaults=DEFAULTS,
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": MODULES},
)
