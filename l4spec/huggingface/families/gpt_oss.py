"""`gpt_oss`: sinks, biases, every other layer a window, clamped experts with biases."""

from typing import Any

from l4spec.huggingface.decoder import Decoder
from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import DECODER, Naming
from l4spec.layers.moe.spec import MoESpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel

DECODER_OF = Decoder(
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    attention={"sinks": True},
    windows="by_type",
    experts=ExpertFields(
        num="num_local_experts", width="intermediate_size", router={"bias": True}, others={"expert_bias": True}
    ),
)


def read(fields: Fields) -> dict[str, Any]:
    """Read by the table, with the clamp of gate and product."""
    clamp = {"limit": fields.number("swiglu_limit"), "alpha": fields.number("swiglu_alpha"), "up_offset": 1.0}
    spec = DECODER_OF.read(fields)
    if "moe" in spec["text"]["parts"]:
        spec["text"]["parts"]["moe"]["clamp"] = clamp
    return spec


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that GptOssForCausalLM reads."""
    clamp = needed(model.text.stack.blocks, MoESpec, "MoE layer").clamp
    limits = {} if clamp is None else {"swiglu_limit": clamp.limit, "swiglu_alpha": clamp.alpha}
    return {**DECODER_OF.write(model, style), **limits}


FAMILY = Family(
    "gpt_oss",
    "GptOssForCausalLM",
    "models/gpt_oss/modeling_gpt_oss.py",
    read,
    write,
    Naming(DECODER, in_turns=True),
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_theta": 150000.0,
        "attention_bias": True,
        "sliding_window": 128,
        "layer_types": None,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "intermediate_size": 2880,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
    ignorable=("initial_context_length",),
    aliases={"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"},
)
