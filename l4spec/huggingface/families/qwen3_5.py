"""`qwen3_5`: Qwen 3.5 and 3.6, dense; the language model is `qwen3_5_text`, the vision tower is left out."""

from l4spec.huggingface.families.qwen3_5_text import FAMILY as TEXT
from l4spec.huggingface.multimodal import language_model

FAMILY = language_model(
    "qwen3_5",
    "Qwen3_5ForConditionalGeneration",
    "models/qwen3_5/modeling_qwen3_5.py",
    {"qwen3_5_text": TEXT},
    prefix="model.language_model.",
)
