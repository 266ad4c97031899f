"""`glm_moe_dsa`: GLM-5 and 5.1; DeepSeek-V3.2 in other sizes, whose index rotates neighbouring elements."""

from typing import Any

from l4spec.huggingface.families import deepseek_v32
from l4spec.huggingface.family import Family
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import AFTER_LAYERS, Naming


def read(fields: Fields) -> dict[str, Any]:
    """As DeepSeek-V3.2."""
    return deepseek_v32.read_indexed(fields, "interleaved")


FAMILY = Family(
    "glm_moe_dsa",
    "GlmMoeDsaForCausalLM",
    "models/glm_moe_dsa/modeling_glm_moe_dsa.py",
    read,
    deepseek_v32.write,
    Naming(deepseek_v32.NAMES, next_token_layers=1, modules=AFTER_LAYERS),
    defaults={
        **deepseek_v32.DEFAULTS,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "q_lora_rank": 2048,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "n_group": 1,
        "topk_group": 1,
        "index_n_heads": 32,
    },
    aliases=deepseek_v32.FAMILY.aliases,
    fixed={**deepseek_v32.FIXED, "indexer_rope_interleave": (True,)},
)
