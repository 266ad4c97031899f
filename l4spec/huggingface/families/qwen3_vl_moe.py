"""`qwen3_vl_moe`: Qwen 3's sparse models that see; the language model is Qwen 3's."""

from dataclasses import replace

from l4spec.huggingface.families.qwen3_moe import FAMILY as QWEN3_MOE
from l4spec.huggingface.multimodal import language_model
from l4spec.huggingface.qwen_tower import qwen_tower

NAMING = replace(QWEN3_MOE.naming, fused_in_out=True, fused_first=True, fused_both=True)
TEXT = replace(
    QWEN3_MOE,
    model_type="qwen3_vl_moe_text",
    naming=NAMING,
    defaults={**QWEN3_MOE.defaults, "norm_topk_prob": True},
)
FAMILY = language_model(
    "qwen3_vl_moe",
    "Qwen3VLMoeForConditionalGeneration",
    "models/qwen3_vl_moe/modeling_qwen3_vl_moe.py",
    {"qwen3_vl_moe_text": TEXT},
    prefix="model.language_model.",
    tower=qwen_tower(("qwen3_vl_moe", "qwen3_vl_moe_vision"), deepstack=(8, 16, 24), sections=(24, 20, 20)),
)
