"""`kimi_k25`: Kimi K2.5 and 2.6; the language model is Kimi K2's, the vision tower is left out."""

from l4spec.huggingface.families.deepseek_v3 import FAMILY as DEEPSEEK_V3
from l4spec.huggingface.families.kimi_k2 import FAMILY as KIMI_K2
from l4spec.huggingface.multimodal import language_model

FAMILY = language_model(
    "kimi_k25",
    "KimiK25ForConditionalGeneration",
    "models/kimi_k25/modeling_kimi_k25.py",
    {"kimi_k2": KIMI_K2, "deepseek_v3": DEEPSEEK_V3},
    ignorable=("ignore_index", "use_unified_vision_chunk", "video_placeholder"),
)
