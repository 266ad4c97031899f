"""`qwen3`: Qwen 3's dense models, with an RMSNorm on each query and key head."""

from typing import Any

from l4spec.huggingface.families.qwen2 import DEFAULTS, read_dense, write_dense
from l4spec.huggingface.family import Family, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import DECODER, Naming
from l4spec.huggingface.text import Data, both_biases, read_gqa
from l4spec.layers.gqa.spec import GQASpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel


def read_attention(fields: Fields) -> Data:
    """Attention with normed queries and keys; `attention_bias` puts biases on all projections."""
    norm = {"kind": "rmsnorm", "eps": fields.number("rms_norm_eps")}
    return read_gqa(fields, qk_norm=norm, **both_biases(fields))


def read(fields: Fields) -> dict[str, Any]:
    """A dense model of such attention."""
    return read_dense(fields, read_attention(fields))


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that Qwen3ForCausalLM reads."""
    attention = needed(model.text.stack.blocks, GQASpec, "grouped-query attention")
    config = {**write_dense(model, style), "head_dim": attention.head_dim}
    return {**config, "attention_bias": attention.qkv_bias}


FAMILY = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    "models/qwen3/modeling_qwen3.py",
    read,
    write,
    Naming(DECODER),
    defaults={**DEFAULTS, "head_dim": 128, "attention_bias": False},
    fixed={"use_qk_norm": (True,)},
)
