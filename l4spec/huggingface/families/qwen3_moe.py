"""`qwen3_moe`: Qwen 3's sparse models; some layers may stay dense."""

from typing import Any

from l4spec.huggingface.families.qwen2 import read_window
from l4spec.huggingface.families.qwen3 import read_attention
from l4spec.huggingface.family import Family, first, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.naming import GATED, Naming
from l4spec.huggingface.text import block, local_size, num_layers, read_text, window, write_gqa, write_text
from l4spec.layers.attention.masks import SlidingWindowMask
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedModel


def read(fields: Fields) -> dict[str, Any]:
    """Every `decoder_sparse_step`-th layer is a MoE, unless `mlp_only_layers` names it."""
    fields.expect("hidden_act", "silu")
    step, dense_ones = fields.size("decoder_sparse_step"), set(fields.integers("mlp_only_layers") or ())
    sparse = [i not in dense_ones and (i + 1) % step == 0 for i in range(num_layers(fields))]
    fields.carry("decoder_sparse_step", "mlp_only_layers", "max_window_layers")
    parts: dict[str, Any] = {"attention": {**read_attention(fields), "mask": window(read_window(fields))}}
    if all(sparse):
        fields.carry("intermediate_size")
    else:
        parts["dense"] = {"kind": "swiglu", "intermediate_size": fields.size("intermediate_size")}
    if any(sparse):
        parts["moe"] = _moe(fields)
    else:
        fields.carry("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
    return {"text": read_text(fields, parts, [block("attention", "moe" if moe else "dense") for moe in sparse])}


def _moe(fields: Fields) -> dict[str, Any]:
    return {
        "kind": "moe",
        "num_experts": fields.size("num_experts"),
        "num_experts_per_token": fields.size("num_experts_per_tok"),
        "intermediate_size": fields.size("moe_intermediate_size"),
        "router": {"score": "softmax", "scales": "output", "renormalize": fields.flag("norm_topk_prob")},
    }


def write(model: ResolvedModel, style: RopeStyle) -> dict[str, Any]:
    """The fields that Qwen3MoeForCausalLM reads."""
    blocks = model.text.stack.blocks
    attention, moe = needed(blocks, GQASpec, "grouped-query attention"), needed(blocks, MoESpec, "MoE layer")
    dense, size = first(blocks, SwiGLUSpec), local_size(blocks, SlidingWindowMask)
    kinds = [block.ffn is not None and isinstance(block.ffn.spec, MoESpec) for block in blocks]
    return {
        **write_text(model.text, style),
        **write_gqa(attention, style, implied_by=model.text.stack.width.hidden_size),
        "attention_bias": attention.qkv_bias,
        "hidden_act": "silu",
        **({"intermediate_size": dense.intermediate_size} if dense else {}),
        "moe_intermediate_size": moe.intermediate_size,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_token,
        "norm_topk_prob": moe.router.renormalize,
        **_sparse_layers(kinds),
        "use_sliding_window": size is not None,
        **({} if size is None else {"sliding_window": size}),
    }


def _sparse_layers(kinds: list[bool]) -> dict[str, Any]:
    """The step that explains most dense layers, and the others by index."""
    step = kinds.index(True) + 1
    fits = all((index + 1) % step == 0 for index, moe in enumerate(kinds) if moe)
    step = step if fits else 1
    return {
        "decoder_sparse_step": step,
        "mlp_only_layers": [i for i, moe in enumerate(kinds) if not moe and (i + 1) % step == 0],
    }


FAMILY = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    "models/qwen3_moe/modeling_qwen3_moe.py",
    read,
    write,
    Naming(GATED),
    defaults={
        "num_key_value_heads": 4,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
    },
    fixed={"use_qk_norm": (True,)},
    aliases={"num_local_experts": "num_experts"},
)
