"""`qwen3_5_moe_text`: the language model of Qwen 3.5's sparse ones; as Qwen3-Next, with projections stored apart."""

from dataclasses import replace

from l4spec.huggingface.decoder import Decoder
from l4spec.huggingface.families.qwen3_next import EXPERTS, GATED
from l4spec.huggingface.family import Family
from l4spec.huggingface.hybrid import (
    APART,
    DEFAULTS,
    FIXED,
    HEADS,
    IGNORABLE,
    JOINED,
    NAMES,
    QWEN_MODULE,
    HybridDecoder,
)
from l4spec.huggingface.naming import FFN, Naming

HYBRID = HybridDecoder(
    Decoder(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm="head",
        attention=GATED,
        partial=0.25,
        unit_offset=True,
        experts=replace(EXPERTS, renormalize=True, places="all"),
    )
)
FAMILY = Family(
    "qwen3_5_moe_text",
    "Qwen3_5MoeForCausalLM",
    "models/qwen3_5_moe/modeling_qwen3_5_moe.py",
    HYBRID.read,
    HYBRID.write,
    Naming(
        {**NAMES, f"{FFN}router.": "model.layers.#.mlp.gate."},
        fused_first=True,
        joined={**JOINED, **APART},
        heads=HEADS,
        kinds=("gated_delta_net",),
        optional=(r"^mtp\.",),
        modules=QWEN_MODULE,
    ),
    defaults={
        **DEFAULTS,
        "num_key_value_heads": 2,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    },
    fixed={**FIXED, "mlp_only_layers": ([],), "norm_topk_prob": (True,)},
    ignorable=IGNORABLE,
)
