"""`qwen3_vl_moe`: Qwen 3's sparse models that see; the language model is Qwen 3's, the vision tower is left out."""

from dataclasses import replace

from l4spec.huggingface.families.qwen3_moe import FAMILY as QWEN3_MOE
from l4spec.huggingface.multimodal import language_model

TEXT = replace(QWEN3_MOE, model_type="qwen3_vl_moe_text", defaults={**QWEN3_MOE.defaults, "norm_topk_prob": True})
FAMILY = language_model(
    "qwen3_vl_moe",
    "Qwen3VLMoeForConditionalGeneration",
    "models/qwen3_vl_moe/modeling_qwen3_vl_moe.py",
    {"qwen3_vl_moe_text": TEXT},
    prefix="model.language_model.",
)
