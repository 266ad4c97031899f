"""`qwen3_next`: Qwen3-Next; delta nets beside gated attention, a mixture with a gated shared expert in every layer."""

from l4spec.huggingface.decoder import Decoder
from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import Family
from l4spec.huggingface.hybrid import (
    DEFAULTS,
    FIXED,
    HEADS,
    IGNORABLE,
    JOINED,
    KEY_HEADS,
    NAMES,
    QWEN_MODULE,
    TOGETHER,
    HybridDecoder,
)
from l4spec.huggingface.naming import FFN, Naming

EXPERTS = ExpertFields(
    shared=1,
    shared_width="shared_expert_intermediate_size",
    renormalize="norm_topk_prob",
    others={"shared_gate": True},
    places="by_step",
)
GATED = {"output_gate": "elementwise"}
HYBRID = HybridDecoder(
    Decoder(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm="head",
        attention=GATED,
        partial=0.25,
        unit_offset=True,
        experts=EXPERTS,
    )
)
FAMILY = Family(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    "models/qwen3_next/modeling_qwen3_next.py",
    HYBRID.read,
    HYBRID.write,
    Naming(
        {**NAMES, f"{FFN}router.": "model.layers.#.mlp.gate."},
        joined={**JOINED, **TOGETHER},
        heads={**HEADS, **KEY_HEADS},
        kinds=("gated_delta_net",),
        optional=(r"^mtp\.",),
        modules=QWEN_MODULE,
    ),
    defaults={
        **DEFAULTS,
        "num_key_value_heads": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True,
    },
    fixed=FIXED,
    ignorable=IGNORABLE,
)
