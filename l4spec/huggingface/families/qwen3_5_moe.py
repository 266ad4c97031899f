"""`qwen3_5_moe`: Qwen 3.5 and 3.6, sparse; the language model is `qwen3_5_moe_text`."""

from l4spec.huggingface.families.qwen3_5_moe_text import FAMILY as TEXT
from l4spec.huggingface.multimodal import language_model
from l4spec.huggingface.qwen_tower import qwen_tower

FAMILY = language_model(
    "qwen3_5_moe",
    "Qwen3_5MoeForConditionalGeneration",
    "models/qwen3_5_moe/modeling_qwen3_5_moe.py",
    {"qwen3_5_moe_text": TEXT},
    prefix="model.language_model.",
    tower=qwen_tower(("qwen3_5_moe", "qwen3_5_moe_vision"), deepstack=None, sections=(11, 11, 10)),
)
