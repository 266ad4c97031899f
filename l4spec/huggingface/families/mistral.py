"""`mistral`: Mistral 7B, Nemo and Small; a sliding window, if any, in every layer."""

from typing import Any

from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import DECODER, Naming
from l4spec.huggingface.text import block, local_size, num_layers, read_gqa, read_text, window, write_gqa, write_text
from l4spec.layers.attention.masks import SlidingWindowMask
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel


def read(fields: Fields) -> dict[str, Any]:
    """As Llama without biases, with a window where `sliding_window` is not null."""
    fields.expect("hidden_act", "silu")
    parts = {
        "attention": read_gqa(fields, mask=window(fields.size_or_none("sliding_window"))),
        "ffn": {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size")},
    }
    return {"text": read_text(fields, parts, [block("attention", "ffn")] * num_layers(fields))}


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that MistralForCausalLM reads."""
    blocks = model.text.stack.blocks
    attention = needed(blocks, GQASpec, "grouped-query attention")
    return {
        **write_text(model.text, style),
        **write_gqa(attention, style, implied_by=model.text.stack.width.hidden_size),
        "intermediate_size": needed(blocks, SwiGLUSpec, "swiglu layer").intermediate_size,
        "hidden_act": "silu",
        "sliding_window": local_size(blocks, SlidingWindowMask),
    }


FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    "models/mistral/modeling_mistral.py",
    read,
    write,
    Naming(DECODER),
    defaults={
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
    },
)
