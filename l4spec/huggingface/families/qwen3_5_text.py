"""`qwen3_5_text`: the language model of Qwen 3.5 and 3.6; delta nets beside gated attention, dense."""

from l4spec.huggingface.decoder import Decoder
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
from l4spec.huggingface.naming import Naming

HYBRID = HybridDecoder(
    Decoder(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm="head",
        attention={"output_gate": "elementwise"},
        partial=0.25,
        unit_offset=True,
    )
)
FAMILY = Family(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    "models/qwen3_5/modeling_qwen3_5.py",
    HYBRID.read,
    HYBRID.write,
    Naming(
        NAMES,
        joined={**JOINED, **APART},
        heads=HEADS,
        kinds=("gated_delta_net",),
        optional=(r"^mtp\.",),
        modules=QWEN_MODULE,
    ),
    defaults={**DEFAULTS, "num_key_value_heads": 4},
    fixed={**FIXED, "mlp_only_layers": ([],)},
    ignorable=IGNORABLE,
)
