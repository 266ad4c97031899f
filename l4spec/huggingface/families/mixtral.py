"""`mixtral`: Mistral's sparse models; softmax routing, renormalised over the chosen experts."""

from typing import Any

from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import DECODER, FFN, Naming, Renames
from l4spec.huggingface.text import block, local_size, num_layers, read_gqa, read_text, window, write_gqa, write_text
from l4spec.layers.attention.masks import SlidingWindowMask
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel


def read(fields: Fields) -> dict[str, Any]:
    """A MoE in every layer, a window in every layer where `sliding_window` is not null."""
    fields.expect("hidden_act", "silu")
    fields.expect("router_jitter_noise", 0.0, 0)
    moe = {
        "kind": "moe",
        "num_experts": fields.size("num_local_experts"),
        "num_experts_per_token": fields.size("num_experts_per_tok"),
        "intermediate_size": fields.size("intermediate_size"),
        "router": {"score": "softmax", "scales": "output", "renormalize": True},
    }
    parts = {"attention": read_gqa(fields, mask=window(fields.size_or_none("sliding_window"))), "moe": moe}
    return {"text": read_text(fields, parts, [block("attention", "moe")] * num_layers(fields))}


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that MixtralForCausalLM reads."""
    blocks = model.text.stack.blocks
    attention = needed(blocks, GQASpec, "grouped-query attention")
    moe = needed(blocks, MoESpec, "MoE layer")
    return {
        **write_text(model.text, style),
        **write_gqa(attention, style, implied_by=model.text.stack.width.hidden_size),
        "intermediate_size": moe.intermediate_size,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_token,
        "router_jitter_noise": 0.0,
        "hidden_act": "silu",
        "sliding_window": local_size(blocks, SlidingWindowMask),
    }


_NAMES: Renames = {
    **DECODER,
    FFN: ("model.layers.#.block_sparse_moe.", "model.layers.#.mlp."),
    f"{FFN}router.": ("model.layers.#.block_sparse_moe.gate.", "model.layers.#.mlp.gate."),
}
FAMILY = Family(
    "mixtral",
    "MixtralForCausalLM",
    "models/mixtral/modeling_mixtral.py",
    read,
    write,
    Naming(_NAMES, each=("w1", "w3", "w2")),
    defaults={
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_jitter_noise": 0.0,
    },
    aliases={"num_experts": "num_local_experts"},
)
