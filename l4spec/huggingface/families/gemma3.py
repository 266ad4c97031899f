"""`gemma3`: Gemma 3 that sees; the language model is `gemma3_text`, the vision tower is left out."""

from l4spec.huggingface.families.gemma3_text import FAMILY as TEXT
from l4spec.huggingface.multimodal import language_model

FAMILY = language_model(
    "gemma3",
    "Gemma3ForConditionalGeneration",
    "models/gemma3/modeling_gemma3.py",
    {"gemma3_text": TEXT},
    prefix="model.language_model.",
    ignorable=("mm_tokens_per_image",),
)
