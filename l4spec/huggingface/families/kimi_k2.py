"""`kimi_k2`: Kimi K2, DeepSeek-V3 by another name and with other sizes."""

from dataclasses import replace

from l4spec.huggingface.families.deepseek_v3 import FAMILY as DEEPSEEK_V3

FAMILY = replace(DEEPSEEK_V3, model_type="kimi_k2")
