"""`qwen2_5_vl`: Qwen 2.5's models that see; the language model is Qwen 2's."""

from dataclasses import replace

from l4spec.huggingface.families.qwen2 import FAMILY as QWEN2
from l4spec.huggingface.multimodal import language_model
from l4spec.huggingface.qwen_window_tower import window_tower

TEXT = replace(
    QWEN2,
    model_type="qwen2_5_vl_text",
    defaults={
        **QWEN2.defaults,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "max_window_layers": 80,
    },
)
FAMILY = language_model(
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    "models/qwen2_5_vl/modeling_qwen2_5_vl.py",
    {"qwen2_5_vl_text": TEXT},
    prefix="",
    tower=window_tower(("qwen2_5_vl_vision", "qwen2_5_vl")),
)
