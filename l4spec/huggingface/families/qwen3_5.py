"""`qwen3_5`: Qwen 3.5 and 3.6, dense; the language model is `qwen3_5_text`."""

from l4spec.huggingface.families.qwen3_5_text import FAMILY as TEXT
from l4spec.huggingface.multimodal import language_model
from l4spec.huggingface.qwen_tower import qwen_tower

FAMILY = language_model(
    "qwen3_5",
    "Qwen3_5ForConditionalGeneration",
    "models/qwen3_5/modeling_qwen3_5.py",
    {"qwen3_5_text": TEXT},
    prefix="model.language_model.",
    tower=qwen_tower(("qwen3_5", "qwen3_5_vision"), deepstack=None, sections=(11, 11, 10)),
)
