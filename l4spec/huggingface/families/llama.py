"""`llama`: Llama 1 to 3.3 and their many relatives."""

from typing import Any

from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import DECODER, Naming
from l4spec.huggingface.text import block, both_biases, num_layers, read_gqa, read_text, write_gqa, write_text
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel


def read(fields: Fields) -> dict[str, Any]:
    """Rotary positions in halves, SwiGLU, biases if any on all projections."""
    fields.expect("hidden_act", "silu")
    bias = {"bias": True} if fields.flag("mlp_bias") else {}
    parts = {
        "attention": read_gqa(fields, **both_biases(fields)),
        "ffn": {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size"), **bias},
    }
    return {"text": read_text(fields, parts, [block("attention", "ffn")] * num_layers(fields))}


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that LlamaForCausalLM reads."""
    blocks = model.text.stack.blocks
    attention = needed(blocks, GQASpec, "grouped-query attention")
    ffn = needed(blocks, SwiGLUSpec, "swiglu layer")
    return {
        **write_text(model.text, style),
        **write_gqa(attention, style, implied_by=model.text.stack.width.hidden_size),
        "intermediate_size": ffn.intermediate_size,
        "hidden_act": "silu",
        "attention_bias": attention.qkv_bias,
        "mlp_bias": ffn.bias,
    }


FAMILY = Family(
    "llama",
    "LlamaForCausalLM",
    "models/llama/modeling_llama.py",
    read,
    write,
    Naming(DECODER),
    defaults={
        "num_key_value_heads": None,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
)
