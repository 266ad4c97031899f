"""`qwen3_vl`: Qwen 3's dense models that see; the language model is Qwen 3's."""

from dataclasses import replace

from l4spec.huggingface.families.qwen3 import FAMILY as QWEN3
from l4spec.huggingface.multimodal import language_model
from l4spec.huggingface.qwen_tower import qwen_tower

TEXT = replace(QWEN3, model_type="qwen3_vl_text", defaults={**QWEN3.defaults, "rope_theta": 500000.0})
FAMILY = language_model(
    "qwen3_vl",
    "Qwen3VLForConditionalGeneration",
    "models/qwen3_vl/modeling_qwen3_vl.py",
    {"qwen3_vl_text": TEXT},
    prefix="model.language_model.",
    tower=qwen_tower(("qwen3_vl", "qwen3_vl_vision"), deepstack=(8, 16, 24), sections=(24, 20, 20)),
)
