"""`qwen3_5_moe`: Qwen 3.5 and 3.6, sparse; the language model is `qwen3_5_moe_text`, the vision tower is left out."""

from l4spec.huggingface.families.qwen3_5_moe_text import FAMILY as TEXT
from l4spec.huggingface.multimodal import language_model

FAMILY = language_model(
    "qwen3_5_moe",
    "Qwen3_5MoeForConditionalGeneration",
    "models/qwen3_5_moe/modeling_qwen3_5_moe.py",
    {"qwen3_5_moe_text": TEXT},
    prefix="model.language_model.",
)
