"""DeepSeek's latent attention (MLA) in configs and checkpoints: its fields and tensor names, whatever the family."""

from l4spec.huggingface.fields import Fields
from l4spec.huggingface.text import CAUSAL, Data
from l4spec.layers.mla.spec import LatentSpec

LATENT_SIZES = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
"""Sizes that configs and `LatentSpec` call alike."""
LATENT_NAMES = {
    "text.layers.#.attention.q_a_norm.": "model.layers.#.self_attn.q_a_layernorm.",
    "text.layers.#.attention.kv_a_norm.": "model.layers.#.self_attn.kv_a_layernorm.",
    "text.layers.#.attention.kv_a_proj.": "model.layers.#.self_attn.kv_a_proj_with_mqa.",
}
"""Our names of tensors to those of checkpoints."""
_NORM_EPS = 1e-6
"""Of the norms of the latent vectors; fixed in the reference, independent of rms_norm_eps."""


def read_latent(fields: Fields, position: Data) -> Data:
    """The attention part of a spec, `position` as its family has it; problems are added to `fields`."""
    heads, rope_dim = fields.size("num_attention_heads"), fields.size("qk_rope_head_dim")
    fields.expect_derived("num_key_value_heads", heads)
    fields.expect_derived("qk_head_dim", fields.size("qk_nope_head_dim") + rope_dim)
    return {
        "kind": "mla",
        "num_heads": heads,
        "q_lora_rank": fields.size_or_none("q_lora_rank"),
        **{name: fields.size(name) for name in LATENT_SIZES},
        "norm_eps": _NORM_EPS,
        **({"bias": True} if fields.flag("attention_bias") else {}),
        "mask": CAUSAL,
        "position": position,
    }


def latent_fields(mla: LatentSpec) -> Data:
    """The config's fields of an attention part."""
    return {
        "num_attention_heads": mla.num_heads,
        "num_key_value_heads": mla.num_heads,
        "q_lora_rank": mla.q_lora_rank,
        **mla.model_dump(include=set(LATENT_SIZES)),
        "attention_bias": mla.bias,
    }
